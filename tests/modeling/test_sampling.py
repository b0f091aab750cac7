"""Sampling agrees with Transformers' processors, row by row, in any mix of rows."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from headrace.kernels.sampling import reference
from headrace.link.sampling import SamplingParams
from headrace.modeling.sampling.sampled_tokens import SampledTokens
from headrace.modeling.sampling.sampler import Sampler
from headrace.modeling.sampling.uniform import uniforms

VOCAB = 3000
"""More than the candidates that top-k and top-p look at first."""
EOS = (7, 2999)
PROMPT = [5, 9, 9, 700, 2000]
CPU = torch.device("cpu")


def logits_of(rows: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def sample(
    logits: torch.Tensor, params: list[SamplingParams], output: list[int] | None = None
) -> SampledTokens:
    output = output or []
    sampler = Sampler(len(params), 64, VOCAB, CPU)
    for row, sampling in enumerate(params):
        sampler.set_row(row, sampling, PROMPT, output, EOS)
    rows = np.arange(len(params), dtype=np.int32)
    position = len(PROMPT) + len(output)
    positions = np.full(len(params), position, dtype=np.int32)
    return sampler.sample(logits, rows, positions, torch.from_numpy(rows))


def transformers_warped(row: torch.Tensor, sampling: SamplingParams, output: list[int]) -> Any:
    ids = torch.tensor([PROMPT + output])
    chain = LogitsProcessorList()
    if sampling.min_new_tokens:
        chain.append(
            MinNewTokensLengthLogitsProcessor(
                len(PROMPT), sampling.min_new_tokens, list(EOS), device="cpu"
            )
        )
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.typical_p is not None and sampling.typical_p < 1:
        chain.append(TypicalLogitsWarper(sampling.typical_p))
    return chain(ids, row[None].clone())[0]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 7.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2500},
    {"top_k": 100_000},
    {"top_p": 0.2},
    {"top_p": 0.95},
    {"top_p": 0.999, "temperature": 20.0},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 0.7},
    {"top_k": 60, "top_p": 0.8},
    {"top_k": 60, "top_p": 0.9, "typical_p": 0.5, "temperature": 1.4},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6, "top_p": 0.5},
    {"min_new_tokens": 5, "top_k": 3},
]


def test_every_combination_draws_what_transformers_distribution_gives() -> None:
    output = [11, 9, 11]
    params = [
        SamplingParams(do_sample=True, seed=seed, **settings)
        for settings in SETTINGS
        for seed in range(6)
    ]
    logits = logits_of(len(params), seed=1)
    logits[:, EOS[0]] = logits.max(-1).values + 1
    before = logits.clone()
    chosen = sample(logits, params, output).token_ids.tolist()
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    position = len(PROMPT) + len(output)
    for row, sampling in enumerate(params):
        warped = transformers_warped(logits[row], sampling, output)
        number = reference.uniform(sampling.seed or 0, position)
        assert chosen[row] == reference.draw(warped, number), sampling


def test_our_reference_warps_as_transformers_does() -> None:
    for index, settings in enumerate(SETTINGS):
        sampling = SamplingParams(do_sample=True, **settings)
        if sampling.min_new_tokens or sampling.repetition_penalty != 1.0:
            continue
        row = logits_of(1, seed=index)[0]
        ours = reference.warp(
            row, sampling.temperature, sampling.top_k, sampling.top_p, sampling.typical_p
        )
        torch.testing.assert_close(ours, transformers_warped(row, sampling, []))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    params = [SamplingParams(do_sample=True, seed=3, **settings) for settings in SETTINGS]
    params += [SamplingParams(), SamplingParams(repetition_penalty=1.2)]
    logits = logits_of(len(params), seed=2)
    together = sample(logits, params, [4]).token_ids.tolist()
    order = list(range(len(params)))
    random.Random(1).shuffle(order)
    shuffled = sample(logits[order], [params[i] for i in order], [4]).token_ids.tolist()
    alone = [sample(logits[i : i + 1], [p], [4]).token_ids.item() for i, p in enumerate(params)]
    assert [together[i] for i in order] == shuffled
    assert together == alone


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.full((2000, VOCAB), -1e4)
    logits[:, [10, 20, 30]] = torch.tensor([0.5, 0.3, 0.2]).log()
    params = [SamplingParams(do_sample=True, seed=seed) for seed in range(2000)]
    chosen = sample(logits, params).token_ids
    shares = [(chosen == token).float().mean().item() for token in (10, 20, 30)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_uniforms_are_those_of_the_reference() -> None:
    seeds = np.array([0, 1, 2**64 - 1, 12345678901234567890], dtype=np.uint64)
    positions = np.array([0, 1, 77, 130_000], dtype=np.int32)
    expected = [reference.uniform(int(s), int(p)) for s, p in zip(seeds, positions, strict=True)]
    assert uniforms(seeds, positions).tolist() == expected


def test_greedy_takes_the_argmax_after_bias_and_penalties() -> None:
    logits = torch.zeros(5, VOCAB)
    logits[:, 11], logits[:, 12], logits[:, 700] = 3.0, 2.0, 2.5
    params = [
        SamplingParams(),
        SamplingParams(frequency_penalty=0.4),
        SamplingParams(presence_penalty=0.9),
        SamplingParams(repetition_penalty=2.0),
        SamplingParams(logit_bias={42: 4.0, 11: -100.0}),
    ]
    # 11 occurs three times in the output; 700 in the prompt alone.
    chosen = sample(logits, params, [11, 11, 11]).token_ids.tolist()
    assert chosen == [11, 700, 700, 12, 42]


def test_penalties_on_random_histories_are_those_of_the_reference() -> None:
    rng = random.Random(4)
    output = [rng.randrange(VOCAB) for _ in range(30)] + [8, 8, 8]
    sampling = SamplingParams(
        repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=-0.5, top_n_tokens=1
    )
    logits = logits_of(1, seed=9)
    logits[0, 8] = 20.0
    occurs = torch.zeros(VOCAB, dtype=torch.bool)
    occurs[torch.tensor(PROMPT + output)] = True
    counts = torch.bincount(torch.tensor(output), minlength=VOCAB)
    expected = reference.penalise(logits[0], occurs, counts, 1.3, 0.7, -0.5)
    drawn = SamplingParams(
        repetition_penalty=1.3, frequency_penalty=0.7, presence_penalty=-0.5, do_sample=True, seed=1
    )
    chosen = sample(torch.cat((logits, logits)), [sampling, drawn], output).token_ids.tolist()
    number = reference.uniform(1, len(PROMPT) + len(output))
    assert chosen == [int(expected.argmax()), reference.draw(expected, number)]


def test_penalties_see_the_tokens_that_were_sampled_meanwhile() -> None:
    sampler = Sampler(1, 64, VOCAB, CPU)
    sampler.set_row(0, SamplingParams(repetition_penalty=4.0), PROMPT, [], EOS)
    logits = torch.zeros(1, VOCAB)
    logits[0, 100], logits[0, 200], logits[0, 300] = 3.0, 2.0, 1.0
    row = np.zeros(1, dtype=np.int32)
    chosen = [
        sampler.sample(
            logits, row, np.array([len(PROMPT) + i], dtype=np.int32), torch.from_numpy(row)
        ).token_ids.item()
        for i in range(3)
    ]
    assert chosen == [100, 200, 300]


def test_ends_are_kept_out_until_min_new_tokens() -> None:
    sampling = SamplingParams(min_new_tokens=2)
    logits = torch.zeros(1, VOCAB)
    logits[0, EOS[0]], logits[0, EOS[1]], logits[0, 55] = 9.0, 8.0, 1.0
    chosen = [sample(logits, [sampling], [3] * n).token_ids.item() for n in range(4)]
    assert chosen == [55, 55, EOS[0], EOS[0]]


def test_logprobs_are_of_the_unchanged_distribution() -> None:
    params = [
        SamplingParams(do_sample=True, seed=5, temperature=3.0, top_k=5, logprobs=True),
        SamplingParams(top_n_tokens=3, logit_bias={1: 50.0}),
    ]
    logits = logits_of(2)
    result = sample(logits, params)
    exact = logits.double().log_softmax(-1)
    assert result.logprobs is not None
    assert result.top_ids is not None
    assert result.top_logprobs is not None
    picked = exact.gather(-1, result.token_ids[:, None])[:, 0].float()
    torch.testing.assert_close(result.logprobs, picked, rtol=1e-5, atol=1e-5)
    assert result.token_ids[1] == 1
    values, ids = exact[1].topk(3)
    assert result.top_ids[1].tolist() == ids.tolist()
    torch.testing.assert_close(result.top_logprobs[1], values.float(), rtol=1e-5, atol=1e-5)
    assert sample(logits, [SamplingParams(), SamplingParams()]).logprobs is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_spoil_their_own_row_only(bad: float) -> None:
    params = [SamplingParams(do_sample=True, seed=i, top_p=0.9) for i in range(3)]
    params += [SamplingParams(do_sample=True, seed=i) for i in range(3)]
    logits = logits_of(6)
    good = sample(logits, params)
    logits[1, 17] = logits[4, 17] = bad
    result = sample(logits, params)
    assert result.valid.tolist() == [True, False, True, True, False, True]
    assert result.token_ids[result.valid].tolist() == good.token_ids[result.valid].tolist()
    assert int(result.token_ids.max()) < VOCAB


def test_a_cleared_row_leaves_nothing_behind() -> None:
    sampler = Sampler(1, 64, VOCAB, CPU)
    everything = SamplingParams(
        do_sample=True, temperature=9.0, repetition_penalty=5.0, logit_bias={3: 100.0}, seed=9,
        min_new_tokens=9, top_n_tokens=4, logprobs=True,
    )  # fmt: skip
    sampler.set_row(0, everything, PROMPT, [], EOS)
    sampler.clear_row(0)
    sampler.set_row(0, SamplingParams(), PROMPT, [], EOS)
    logits = logits_of(1)
    row = np.zeros(1, np.int32)
    result = sampler.sample(logits, row, np.full(1, 5, np.int32), torch.from_numpy(row))
    assert result.token_ids.item() == logits.argmax().item()
    assert result.logprobs is None
