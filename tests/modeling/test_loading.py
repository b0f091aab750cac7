"""Weights arrive as the files hold them, in any supported type, or are refused by name."""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from logits_harness import LogitsHarness, in_one_go
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.load import load_decoder, random_decoder
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import GGUFBlocks

CPU = torch.device("cpu")
IDS = [1, 17, 30, 5, 5, 80, 2, 44, 9, 63]


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def logits_of(checkpoint: Checkpoint, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    backend = TorchBackend(CPU, dtype)
    decoder = load_decoder(checkpoint, backend.operations)
    return in_one_go(LogitsHarness(checkpoint.config, decoder, backend), ids)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_safetensors_of_every_float_type(tmp_path: Path, stored: torch.dtype) -> None:
    small_model().to(stored).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    ours = logits_of(resolve(str(tmp_path)), IDS, torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "heads"), [(slice(8, 24), None), (slice(5, 11), 2)])
def test_rows_of_a_tensor_are_those_of_the_whole(
    tmp_path: Path, rows: slice, heads: int | None
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.randn(24, 8)}, path)
    length = 24 * 8 * 4
    offset = path.stat().st_size - length
    entry = TensorEntry("weight", path, offset, length, "F32", (24, 8), permuted_heads=heads)
    reader = TensorReader({"weight": entry}, CPU)
    assert torch.equal(reader.read("weight", rows), reader.read("weight")[rows])


def test_shards_are_read_from_their_own_files(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    ours = logits_of(resolve(str(tmp_path)), IDS, torch.float32)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"]
)
def test_a_number_that_is_none_is_refused_by_tensor_name(
    tmp_path: Path, name: str, bad: float
) -> None:
    small_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] = bad
    save_file(tensors, path)
    with pytest.raises(ConfigurationError, match=rf"`{name}`: 1 of its numbers"):
        load_decoder(resolve(str(tmp_path)), TorchBackend(CPU, torch.bfloat16).operations)


def test_a_quantized_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    data = quants.quantize(
        np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32),
        GGMLQuantizationType.Q4_0,
    )
    data[2, 0:2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    path = tmp_path / "weights.bin"
    path.write_bytes(data.tobytes())
    entry = TensorEntry("a.weight", path, 0, data.nbytes, "Q4_0", (4, 64))
    with pytest.raises(ConfigurationError, match=r"`a\.weight`: 1 of its numbers"):
        TensorReader({"a.weight": entry}, CPU).read("a.weight")


def test_an_unsupported_dtype_is_refused_by_tensor_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(64))
    entry = TensorEntry("a.weight", path, 0, 64, "F8_E4M3", (8, 8))
    with pytest.raises(ConfigurationError, match=r"`a\.weight`: dtype F8_E4M3 is not supported"):
        TensorReader({"a.weight": entry}, CPU).read("a.weight")


def test_unaligned_bytes_are_read(tmp_path: Path) -> None:
    values = torch.arange(12, dtype=torch.float32).view(3, 4)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"odd" + values.numpy().tobytes())
    entry = TensorEntry("a.weight", path, 3, 48, "F32", (3, 4))
    read = TensorReader({"a.weight": entry}, CPU).read("a.weight")
    assert isinstance(read, torch.Tensor)
    assert torch.equal(read, values)


def test_random_weights_repeat_with_their_seed(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    config = resolve(str(tmp_path)).config

    def logits(seed: int) -> torch.Tensor:
        backend = TorchBackend(CPU, torch.float32)
        decoder = random_decoder(config, seed, backend.operations)
        return in_one_go(LogitsHarness(config, decoder, backend), IDS)

    assert torch.equal(logits(5), logits(5))
    assert not torch.equal(logits(5), logits(6))


@pytest.fixture(scope="module")
def builtin() -> Checkpoint:
    return resolve(None)


def test_builtin_tensors_equal_the_gguf_packages(builtin: Checkpoint) -> None:
    """Every tensor, with llama.cpp's permutation of Q and K rows undone."""
    config = builtin.config
    ggml_names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    theirs = {tensor.name: tensor for tensor in GGUFReader(builtin.path).tensors}
    reader = TensorReader(builtin.tensors, CPU)
    for name in builtin.tensors:
        layer = name.split(".")[2]
        if name.startswith("model.layers.") and layer not in ("0", "17", "29"):
            continue
        inner = name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight")
        ggml = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}.get(inner)
        tensor = theirs[f"{ggml}.weight" if ggml else f"blk.{layer}.{ggml_names[inner]}.weight"]
        expected = quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
        if inner in heads:
            pairs = expected.reshape(heads[inner], config.head_dim // 2, 2, -1)
            expected = pairs.swapaxes(1, 2).reshape(expected.shape)
        part = reader.read(name)
        ours = dequantize(part, torch.float32) if isinstance(part, GGUFBlocks) else part
        torch.testing.assert_close(ours, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


def test_builtin_logits_agree_with_transformers_on_the_same_file(builtin: Checkpoint) -> None:
    # Transformers reads the file twice, and makes the table of names again for every module.
    with (
        mock.patch("gguf.GGUFReader", functools.cache(GGUFReader)),
        mock.patch("gguf.get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        model = AutoModelForCausalLM.from_pretrained(
            builtin.path.parent, gguf_file=builtin.path.name, dtype=torch.float32
        ).eval()
    text = "<|im_start|>user\nName three rivers of France.<|im_end|>\n<|im_start|>assistant\nThe"
    ids = [int(token) for token in builtin.load_tokenizer().encode(text)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        # In place, since a conversion of the whole model would also round its rotary frequencies.
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
        rounded = model(torch.tensor([ids])).logits[0].float()
    theirs = (rounded - expected).abs().mean()
    for dtype in (torch.float32, torch.bfloat16):
        error = (logits_of(builtin, ids, dtype) - expected).abs()
        print(f"{dtype}: mean logit error {error.mean():.2e}, worst {error.max():.2e}")
        if dtype == torch.float32:
            assert error.max() < 2e-3
        else:
            print(f"Transformers in bfloat16: mean {theirs:.2e}")
            assert error.mean() < 1.2 * theirs
