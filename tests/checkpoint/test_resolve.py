"""From a name to a checkpoint: directories, GGUF files, hub ids, and clear refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.checkpoint import hub
from headrace.checkpoint.expected_tensors import expected_tensors
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.checkpoint.hf_checkpoint import HuggingFaceCheckpoint
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.sizes import (
    kv_bytes_per_token,
    parameter_count,
    stored_bytes,
    weight_bytes,
)
from headrace.link.errors import ConfigurationError

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 16, "sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16},
}


@pytest.fixture(scope="module", params=FAMILIES)
def saved_model(request, tmp_path_factory):
    """A random model of each family with its directory, sharded for one of them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = tmp_path_factory.mktemp(request.param)
    config = AutoConfig.for_model(request.param, **SHAPE, **FAMILIES[request.param])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    size = "20KB" if request.param == "mistral" else "1GB"
    model.save_pretrained(directory, max_shard_size=size)
    return model, directory


def test_a_saved_model_is_found_tensor_by_tensor(saved_model):
    import torch

    model, directory = saved_model
    checkpoint = resolve(str(directory))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    state = model.state_dict()
    for name, shape in expected_tensors(checkpoint.config).items():
        entry = checkpoint.tensors[name]
        assert entry.shape == shape == tuple(state[name].shape)
        assert entry.dtype == "BF16"
        raw = entry.path.read_bytes()[entry.offset : entry.offset + entry.nbytes]
        stored = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).reshape(shape)
        assert torch.equal(stored, state[name])
    tied = {"lm_head.weight"} if checkpoint.config.tie_word_embeddings else set()
    assert set(state) - tied == set(expected_tensors(checkpoint.config))


def test_sizes_count_what_the_model_has(saved_model):
    model, directory = saved_model
    checkpoint = resolve(str(directory))
    config = checkpoint.config
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameter_count(config) == count
    assert weight_bytes(config, "float32") == 4 * count
    assert stored_bytes(config, checkpoint.tensors) == 2 * count
    assert kv_bytes_per_token(config, "bfloat16") == 2 * 2 * config.kv_size * 2


def test_builtin_sizes(builtin):
    assert parameter_count(builtin.config) == 134_515_008
    assert kv_bytes_per_token(builtin.config, "bfloat16") == 23_040
    # 64 bytes and a scale, of 3 key heads and 3 value heads in 30 layers.
    assert kv_bytes_per_token(builtin.config, "int8") == 30 * 6 * 68
    assert stored_bytes(builtin.config, builtin.tensors) < 98_362_432


def test_wrong_shape_is_refused_before_loading(saved_model, tmp_path):
    _, directory = saved_model
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=r"mlp\.\w+\.\w+` has shape .*, expected .*49"):
        _ = resolve(str(tmp_path)).tensors


@pytest.mark.parametrize("saved_model", ["llama"], indirect=True)
def test_unexpected_bias_is_not_ignored(saved_model, tmp_path):
    _, directory = saved_model
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"mlp_bias": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match=r"mlp\.\w+_proj\.bias"):
        _ = resolve(str(tmp_path)).tensors


def test_gguf_file_and_directory(write_gguf):
    path = write_gguf({"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.eos_token_id": 1})
    assert isinstance(resolve(str(path)), GGUFCheckpoint)
    found = resolve(str(path.parent))
    assert isinstance(found, GGUFCheckpoint)
    assert found.path == path
    assert found.max_position == 128
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ConfigurationError, match=r"several GGUF files.*model\.gguf, other"):
        resolve(str(path.parent))


def test_end_tokens_of_gguf(write_gguf, builtin):
    tokens = ["<s>", "</s>", "<|eot_id|>", "<|im_end|>", "x"]
    keys = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eom_token_id": 4,
    }
    checkpoint = resolve(str(write_gguf(keys)))
    # <|im_end|> is an ordinary token of this vocabulary.
    assert checkpoint.eos_token_ids == (1, 2, 4)
    assert checkpoint.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert 2 in builtin.eos_token_ids
    assert builtin.special_tokens["eos_token"] == "<|im_end|>"


def _directory(path: Path, **files) -> HuggingFaceCheckpoint:
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    checkpoint = resolve(str(path))
    assert isinstance(checkpoint, HuggingFaceCheckpoint)
    return checkpoint


def test_end_tokens_are_the_union_of_all_files(tmp_path):
    checkpoint = _directory(
        tmp_path,
        config={"eos_token_id": 5},
        generation_config={"eos_token_id": [7, 5], "other": 1},
        tokenizer_config={"eos_token": "<end>", "bos_token": {"content": "<b>"}},
        tokenizer={"added_tokens": [{"id": 9, "content": "<end>", "special": True}]},
    )
    assert checkpoint.eos_token_ids == (5, 7, 9)
    assert checkpoint.special_tokens == {"eos_token": "<end>", "bos_token": "<b>"}


def test_end_token_from_the_added_tokens_decoder(tmp_path):
    decoder = {"3": {"content": "<end>", "special": True}}
    checkpoint = _directory(
        tmp_path,
        config={},
        tokenizer_config={"added_tokens_decoder": decoder},
        special_tokens_map={"eos_token": "<end>"},
    )
    assert checkpoint.eos_token_ids == (3,)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_malformed_json_names_the_file(tmp_path, content):
    (tmp_path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=r"config\.json: malformed"):
        _ = resolve(str(tmp_path)).config


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("./missing", "no such file or directory"),
        ("/no/such/model", "no such file or directory"),
        ("missing.gguf", "no such file or directory"),
        ("a/b/c", "no such file or directory"),
        ("", "no such file or directory|holds neither"),
        ("bad name/x", "no such file or directory"),
    ],
)
def test_missing_paths(model, reason):
    with pytest.raises(ConfigurationError, match=reason):
        resolve(model)


def test_other_files_and_empty_directories(tmp_path):
    for name in ("pytorch_model.bin", "model.pt"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ConfigurationError, match="safetensors and GGUF only"):
            resolve(str(tmp_path / name))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="name the directory"):
        resolve(str(tmp_path / "model.safetensors"))
    with pytest.raises(ConfigurationError, match=r"holds neither config\.json nor a GGUF file"):
        resolve(str(tmp_path))


def test_hub_id_comes_from_the_snapshot(monkeypatch, tmp_path):
    snapshot = tmp_path / "0123abc"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    asked = []

    def download(model_id, revision=None, **options):
        asked.append((model_id, revision, options))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    checkpoint = resolve("owner/model", "main")
    assert (checkpoint.model_id, checkpoint.sha) == ("owner/model", "0123abc")
    ((model_id, revision, options),) = asked
    assert (model_id, revision) == ("owner/model", "main")
    assert not any(
        pattern.endswith((".bin", ".py", ".gguf")) for pattern in options["allow_patterns"]
    )


def _gguf_repository(monkeypatch, directory: Path, names: list[str]) -> list[str]:
    fetched = []

    def download(model_id, file, **options):
        fetched.append(f"{model_id}/{file}")
        (directory / file).write_bytes(b"")
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(directory))
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *a, **k: ["README.md", *names])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return fetched


def test_a_repository_of_one_gguf_file(monkeypatch, tmp_path):
    fetched = _gguf_repository(monkeypatch, tmp_path, ["only.gguf"])
    checkpoint = resolve("owner/model")
    assert isinstance(checkpoint, GGUFCheckpoint)
    assert checkpoint.path == tmp_path / "only.gguf"
    assert fetched == ["owner/model/only.gguf"]


def test_of_several_gguf_files_one_must_be_named(monkeypatch, tmp_path):
    fetched = _gguf_repository(monkeypatch, tmp_path, ["q4.gguf", "q8.gguf"])
    with pytest.raises(ConfigurationError, match=r"several GGUF files; .*`owner/model/q4"):
        resolve("owner/model")
    assert resolve("owner/model/q8.gguf").path == tmp_path / "q8.gguf"
    assert fetched == ["owner/model/q8.gguf"]


def test_without_a_network_the_cached_snapshot_serves(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")

    (tmp_path / "model.safetensors").write_bytes(b"")

    def download(model_id, local_files_only=False, **options):
        if not local_files_only:
            raise ConnectionError("no route")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("owner/model").path == tmp_path


def test_no_network_and_no_copy(monkeypatch, tmp_path):
    def download(model_id, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ConfigurationError, match="cannot be reached") as caught:
        hub.download("owner/model", None)
    assert "\n" not in str(caught.value)


def test_resolving_imports_neither_torch_nor_tokenizers(builtin):
    code = (
        "import sys\n"
        "from headrace.checkpoint.resolve import resolve\n"
        "checkpoint = resolve(sys.argv[1])\n"
        "assert checkpoint.tensors and checkpoint.config and checkpoint.eos_token_ids\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'jinja2', 'huggingface_hub')"
        " if m in sys.modules])\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code, str(builtin.path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": source},
    )
    assert done.stdout.strip() == "[]"
