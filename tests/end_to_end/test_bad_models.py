"""A model that cannot be served: one clear line, exit status 2, and nothing of it executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in several shards, with a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("models") / "good"
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=256,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="60KB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture
def model(good_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_model, tmp_path / "model"))


def refusal(model: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "headrace.cli", "serve", str(model), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.strip().splitlines()
    return lines[-1]


def edit_tensor(model: Path, name: str, edit) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    shard = model / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = edit(tensors[name])
    save_file(tensors, shard, metadata={"format": "pt"})


def test_a_missing_shard_is_named(model: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in refusal(model)


def test_a_truncated_shard_is_named(model: Path) -> None:
    shard = sorted(model.glob("*.safetensors"))[0]
    os.truncate(shard, shard.stat().st_size - 100)
    assert shard.name in refusal(model)


def test_a_wrong_shape_is_named_with_the_right_one(model: Path) -> None:
    edit_tensor(model, "model.layers.1.mlp.up_proj.weight", lambda t: t[:-1].contiguous())
    message = refusal(model)
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert "96" in message


def test_a_nan_weight_is_named(model: Path) -> None:
    def poison(tensor: torch.Tensor) -> torch.Tensor:
        tensor[3, 5] = float("nan")
        return tensor

    edit_tensor(model, "model.layers.0.self_attn.k_proj.weight", poison)
    message = refusal(model)
    assert "model.layers.0.self_attn.k_proj.weight" in message
    assert "NaN" in message


def test_a_pickle_is_refused_and_never_opened(model: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    for shard in model.glob("*.safetensors*"):
        shard.unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = refusal(model)
    assert "safetensors" in message
    assert not trap.exists()


def test_code_in_auto_map_is_never_executed(model: Path, tmp_path: Path) -> None:
    trap = tmp_path / "executed"
    (model / "evil.py").write_text(f"open({str(trap)!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((model / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    (model / "config.json").write_text(json.dumps(config))
    message = refusal(model)
    assert "evil" in message
    assert "llama" in message, "says what is supported"
    assert not trap.exists()


def test_an_unknown_path_is_one_line(tmp_path: Path) -> None:
    assert "no such file or directory" in refusal(tmp_path / "nothing")
