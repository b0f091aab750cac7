"""A model small enough to train in a blink, written without torch: bytes as tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.expected_tensors import expected_tensors

CONFIG = ModelConfig(
    family="llama",
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=259,
    max_position=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    dtype="float32",
)
BEGIN, END, TURN = 256, 257, 258
TEMPLATE = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + ':' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant:' }}{% endif %}"
)


def write_tiny_model(directory: Path, config: ModelConfig = CONFIG) -> Path:
    """Config, random weights, tokenizer and chat template in Hugging Face's format."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config_json(config)))
    generator = np.random.default_rng(0)
    weights = {
        name: np.ones(shape, np.float32)
        if name.endswith("norm.weight")
        else generator.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in expected_tensors(config).items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<turn>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(described))
    return directory


def write_rows(path: Path, rows: list[object]) -> Path:
    """A JSONL file of rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(count: int) -> list[object]:
    """Rows to train on."""
    return [{"prompt": f"{n}+{n}=", "completion": f"{2 * n}" + "." * (n % 9)} for n in range(count)]
