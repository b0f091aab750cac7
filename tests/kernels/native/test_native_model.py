"""A whole model: a request's tokens do not depend on what is computed beside it."""

from __future__ import annotations

import pytest
import torch

from headrace.checkpoint.config import ModelConfig
from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.loading.load import random_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits, ScheduledTokens

CONFIG = ModelConfig(
    family="qwen3",
    hidden_size=96,
    intermediate_size=160,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=300,
    max_position=256,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    qk_norm=True,
)
PROMPT = [7, 250, 31, 4, 4, 99, 180, 2, 60, 61, 62, 5, 17, 233, 8, 9, 10, 3, 77]
OUTPUTS = 12


def runner(backend: NativeCpuBackend) -> ModelRunner:
    decoder = random_decoder(CONFIG, 3, backend.operations)
    limits = RunnerLimits(max_tokens=64, max_rows=8, max_length=128, block_size=16, num_blocks=64)
    return ModelRunner(CONFIG, decoder, backend, limits)


def generate(model: ModelRunner, chunks: list[int], company: int, seed: int | None) -> list[int]:
    """Tokens that follow ``PROMPT`` in row 0, beside ``company`` other sequences."""
    sampling = SamplingParams(seed=seed or 0, do_sample=seed is not None, temperature=1.5)
    others = range(1, company + 1)
    for row in (0, *others):
        model.set_row(row, sampling, PROMPT)
        model.set_blocks(row, 0, [8 * row + page for page in (3, 0, 2, 1)])
    position, tokens = 0, []
    for step, length in enumerate(chunks + [1] * (OUTPUTS - 1)):
        prefilling = step < len(chunks)
        fed = PROMPT[position : position + length] if prefilling else None
        # Each of the others brings another number of tokens, and they are gone every third step.
        busy = [row for row in others if step % 3 != 2]
        batch = [ScheduledTokens(row, step, PROMPT[: 1 + row], samples=True) for row in busy[:1]]
        batch.append(ScheduledTokens(0, position, fed, samples=step >= len(chunks) - 1))
        batch += [ScheduledTokens(row, step, PROMPT[: 1 + row], samples=True) for row in busy[1:]]
        result = model.execute(batch)
        position += length
        if step >= len(chunks) - 1:
            tokens.append(int(result.token_ids[len(busy[:1])]))
    return tokens


@pytest.mark.parametrize("seed", [None, 5])
def test_tokens_depend_on_the_request_alone(
    instruction_set: str, dtype: torch.dtype, seed: int | None
) -> None:
    results = [
        generate(runner(NativeCpuBackend(dtype, threads, instruction_set)), chunks, company, seed)
        for threads, chunks, company in [(1, [19], 0), (2, [5, 1, 13], 3), (3, [16, 3], 7)]
    ]
    assert results[0] == results[1] == results[2]
    assert len(set(results[0])) > 1
