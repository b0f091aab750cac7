"""Small checkpoints for the tests of this floor; Transformers and ``gguf`` are the oracles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gguf_tokenizer import gguf_tokenizer
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.tokenizer import Tokenizer

WriteGGUF = Callable[..., Path]

# A llama so small that a file of it is a few kilobytes.
TINY_LLAMA_KEYS: dict[str, Any] = {
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def tiny_llama_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"token_embd.weight": (48, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (32,),
            f"blk.{layer}.attn_q.weight": (32, 32),
            f"blk.{layer}.attn_k.weight": (16, 32),
            f"blk.{layer}.attn_v.weight": (16, 32),
            f"blk.{layer}.attn_output.weight": (32, 32),
            f"blk.{layer}.ffn_norm.weight": (32,),
            f"blk.{layer}.ffn_gate.weight": (64, 32),
            f"blk.{layer}.ffn_up.weight": (64, 32),
            f"blk.{layer}.ffn_down.weight": (32, 64),
        }
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def write_gguf(tmp_path_factory: pytest.TempPathFactory) -> WriteGGUF:
    """Write a GGUF file with the ``gguf`` package: keys (None removes one) and tensors."""

    def write(
        keys: dict[str, Any] | None = None,
        arrays: dict[str, np.ndarray] | None = None,
        architecture: str = "llama",
        quantize: dict[str, gguf.GGMLQuantizationType] | None = None,
    ) -> Path:
        path = tmp_path_factory.mktemp("gguf") / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in {**TINY_LLAMA_KEYS, **(keys or {})}.items():
            if value is None:
                continue
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for name, array in (tiny_llama_arrays() if arrays is None else arrays).items():
            kind = (quantize or {}).get(name)
            if kind is None:
                writer.add_tensor(name, array)
            else:
                writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def tiny_arrays() -> Callable[[], dict[str, np.ndarray]]:
    return tiny_llama_arrays


@pytest.fixture(scope="session")
def builtin() -> Checkpoint:
    return resolve(None)


@pytest.fixture(scope="session")
def builtin_tokenizer(builtin: Checkpoint) -> Tokenizer:
    return builtin.load_tokenizer()


@pytest.fixture(scope="session")
def build_tokenizer(write_gguf: WriteGGUF) -> Callable[[Path], Tokenizer]:
    from headrace.checkpoint.gguf import GGUFFile

    return lambda path: gguf_tokenizer(GGUFFile(path))
