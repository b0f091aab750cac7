"""Logits of small random models of every family agree with Transformers, however batched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logits_harness import WAYS, LogitsHarness
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.resolve import resolve
from headrace.kernels import native
from headrace.modeling.backends.backend import Backend
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.loading.load import load_decoder

LENGTH = 50
SMALL: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # Not hidden_size / num_attention_heads, which is 16.
    "head_dim": 32,
    # Far from the usual 0.02: attention and rotation then show in the logits.
    "initializer_range": 0.25,
}

# Transformers' Qwen2 knows no head_dim of its own.
QWEN2 = {name: value for name, value in SMALL.items() if name != "head_dim"} | {"hidden_size": 128}


def rope(kind: str, **values: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


def llama(**changes: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**(SMALL | changes)))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-all-biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama-one-kv-head-narrow-heads": lambda: llama(num_key_value_heads=1, head_dim=24),
    "llama-linear": lambda: llama(**rope("linear", factor=2.0)),
    "llama-dynamic-short": lambda: llama(**rope("dynamic", factor=2.0)),
    "llama3": lambda: llama(
        **rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        )
    ),
    "llama-yarn": lambda: llama(**rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama-yarn-magnitude": lambda: llama(
        **rope("yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=0.9)
    ),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=10)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**QWEN2, tie_word_embeddings=True)),
    "qwen2-window-in-last-layers": lambda: Qwen2ForCausalLM(
        Qwen2Config(**QWEN2, use_sliding_window=True, sliding_window=17, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
}


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Norms and biases as a trained model has them: neither one nor zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PreTrainedModel]:
    torch.manual_seed(11)
    model = randomise(MODELS[request.param]())
    # The weights that bfloat16 can hold, so that one model serves both dtypes.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return directory, model


@pytest.fixture(scope="module")
def token_ids() -> list[int]:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, SMALL["vocab_size"], (LENGTH,), generator=generator).tolist()


def backends(dtype: torch.dtype, config: ModelConfig) -> list[Backend]:
    found: list[Backend] = [TorchBackend(torch.device("cpu"), dtype)]
    if native.reason_unavailable() is None and config.head_dim % 32 == 0:
        found.append(NativeCpuBackend(dtype, 1))
    return found


@torch.no_grad()
def reference_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].float()


def test_float32_logits_however_the_sequence_is_cut(
    saved: tuple[Path, PreTrainedModel], token_ids: list[int]
) -> None:
    directory, model = saved
    expected = reference_logits(model, token_ids)
    checkpoint = resolve(str(directory))
    for backend in backends(torch.float32, checkpoint.config):
        decoder = load_decoder(checkpoint, backend.operations)
        harness = LogitsHarness(checkpoint.config, decoder, backend)
        for way, compute in WAYS.items():
            error = (compute(harness, token_ids) - expected).abs() / expected.std()
            print(f"{backend.name} {way}: mean {error.mean():.1e}, worst {error.max():.1e} of std")
            assert error.max() < 2e-4, (backend.name, way)


def test_what_is_sampled_beside_a_token_does_not_change_its_logits(
    saved: tuple[Path, PreTrainedModel], token_ids: list[int]
) -> None:
    """The last layer is computed for sampled tokens only, in whatever order they are asked for."""
    directory, _ = saved
    checkpoint = resolve(str(directory))
    batch, chosen = [(0, 0, token_ids[:9]), (1, 0, token_ids[9:10]), (2, 0, token_ids)], [59, 8, 9]
    for backend in backends(torch.float32, checkpoint.config):
        decoder = load_decoder(checkpoint, backend.operations)
        harness = LogitsHarness(checkpoint.config, decoder, backend)
        for row in range(3):
            harness.set_blocks(row, list(range(8 * row, 8 * row + 8)))
        every = torch.cat(harness.step(batch))
        few = harness.sampled(batch, chosen)
        if backend.name == "native":
            assert torch.equal(few, every[chosen])
        torch.testing.assert_close(few, every[chosen])


def test_bfloat16_logits_are_no_worse_than_transformers_own(
    saved: tuple[Path, PreTrainedModel], token_ids: list[int]
) -> None:
    directory, model = saved
    exact = reference_logits(model, token_ids)
    # Not ``model.bfloat16()``, which would also round the rotary frequencies.
    narrow = type(model).from_pretrained(directory, dtype=torch.bfloat16).eval()
    rounded = reference_logits(narrow, token_ids)
    theirs = (rounded - exact).abs().mean() / exact.std()
    checkpoint = resolve(str(directory))
    for backend in backends(torch.bfloat16, checkpoint.config):
        decoder = load_decoder(checkpoint, backend.operations)
        harness = LogitsHarness(checkpoint.config, decoder, backend)
        for way, compute in WAYS.items():
            error = (compute(harness, token_ids) - exact).abs() / exact.std()
            print(
                f"{backend.name} {way}: mean {error.mean():.1e}, worst {error.max():.1e} of std; "
                f"Transformers' mean {theirs:.1e}"
            )
            assert error.mean() < 1.2 * theirs, (backend.name, way)


@torch.no_grad()
def test_dynamic_scaling_beyond_the_trained_length_is_that_of_generation(
    tmp_path: Path, token_ids: list[int]
) -> None:
    torch.manual_seed(3)
    model = randomise(llama(max_position_embeddings=20, **rope("dynamic", factor=4.0)))
    model.save_pretrained(tmp_path)
    rows, past = [], None
    for token in token_ids:
        output = model(torch.tensor([[token]]), past_key_values=past, use_cache=True)
        rows.append(output.logits[0])
        past = output.past_key_values
    expected = torch.cat(rows)
    checkpoint = resolve(str(tmp_path))
    for backend in backends(torch.float32, checkpoint.config):
        decoder = load_decoder(checkpoint, backend.operations)
        harness = LogitsHarness(checkpoint.config, decoder, backend)
        for way, compute in WAYS.items():
            error = (compute(harness, token_ids) - expected).abs() / expected.std()
            assert error.max() < 2e-4, (backend.name, way)
