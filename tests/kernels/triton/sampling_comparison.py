"""The sampler of our own kernels against the plain reference of sampling, row by row."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headrace.kernels.sampling import reference
from headrace.kernels.triton_launch import GpuTraits
from headrace.link.sampling import SamplingParams
from headrace.modeling.sampling.device_sampler import DeviceSampler
from headrace.modeling.sampling.sampled_tokens import SampledTokens

EOS = (7, 11)
PROMPT = [5, 9, 9, 100, 200]
NEAR_BOUNDARY = 2e-6
"""Of a cumulative probability: summed in another order it may lie on the other side of a draw."""

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.3},
    {"temperature": 7.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 2500},
    {"top_p": 0.2},
    {"top_p": 0.95},
    {"top_p": 0.999, "temperature": 20.0},
    {"typical_p": 0.3},
    {"typical_p": 0.9, "temperature": 0.7},
    {"top_k": 60, "top_p": 0.8},
    {"top_k": 60, "top_p": 0.9, "typical_p": 0.5, "temperature": 1.4},
    {"top_p": 0.9, "typical_p": 0.6},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6, "top_p": 0.5},
    {"frequency_penalty": 0.7, "presence_penalty": -0.5, "top_k": 12, "repetition_penalty": 1.1},
    {"min_new_tokens": 99, "top_k": 3},
    {"logit_bias": {3: 4.0, 7: -100.0, 20: 9.0}, "top_p": 0.7},
)


@dataclass
class Bench:
    """A sampler with as many rows as there are parameters, and what it is compared with."""

    params: list[SamplingParams]
    vocab_size: int
    device: torch.device
    traits: GpuTraits
    block: int
    outputs: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.params)
        self.outputs = self.outputs or [[] for _ in self.params]
        self.sampler = DeviceSampler(
            count, 64, 8 * count, self.vocab_size, self.device, self.traits, self.block
        )
        for row, (params, output) in enumerate(zip(self.params, self.outputs, strict=True)):
            self.sampler.set_row(row, params, PROMPT, list(output), EOS)

    def sample(self, logits: torch.Tensor, order: list[int] | None = None) -> SampledTokens:
        rows = np.array(order or range(len(self.params)), dtype=np.int32)
        positions = np.array([len(PROMPT) + len(self.outputs[row]) for row in rows], np.int32)
        on_device = torch.from_numpy(rows).to(self.device)
        return self.sampler.sample(logits.clone(), rows, positions, on_device)

    def altered(self, row: int, logits: torch.Tensor) -> torch.Tensor:
        params, output = self.params[row], self.outputs[row]
        changed = logits.clone()
        for token, bias in params.logit_bias.items():
            changed[token] += bias
        if params.min_new_tokens > len(output):
            changed[list(EOS)] = float("-inf")
        occurs = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
        occurs[torch.tensor(PROMPT + output)] = True
        counts = torch.bincount(
            torch.tensor(output, dtype=torch.int64), minlength=self.vocab_size
        ).to(logits.device)
        return reference.penalise(
            changed,
            occurs,
            counts,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )

    def agrees(self, row: int, logits: torch.Tensor, token: int) -> bool:
        """Whether ``token`` is what the reference draws, but for rounding at a boundary."""
        params = self.params[row]
        changed = self.altered(row, logits)
        if not params.do_sample:
            return token == int(changed.argmax())
        warped = reference.warp(
            changed, params.temperature, params.top_k, params.top_p, params.typical_p
        )
        number = reference.uniform(params.seed or 0, len(PROMPT) + len(self.outputs[row]))
        if token == reference.draw(warped, number):
            return True
        cumulative = warped.double().softmax(-1).cumsum(-1)
        lower = float(cumulative[token - 1]) if token else 0.0
        tolerance = NEAR_BOUNDARY * (1 + self.vocab_size / 20000)
        inside = lower - tolerance <= number <= float(cumulative[token]) + tolerance
        return inside and bool(warped[token] > float("-inf"))


def _params(seeds: int, **more: Any) -> list[SamplingParams]:
    return [
        SamplingParams(do_sample=True, seed=17 * seed + 3, **settings, **more)
        for settings in SETTINGS
        for seed in range(seeds)
    ]


def draws(
    vocab_size: int, device: torch.device, traits: GpuTraits, block: int, seeds: int, *, tied: bool
) -> float:
    """Share of rows whose draw differs, for every setting together."""
    params = _params(seeds)
    bench = Bench(params, vocab_size, device, traits, block, [[30, 9, 30] for _ in params])
    logits = torch.randn(len(params), vocab_size, device=device) * 3
    if tied:
        # Many equal logits, and rows in which all are equal.
        logits = (logits * 2).round() / 2
        logits[::5] = 1.25
    result = bench.sample(logits)
    tokens = result.token_ids.tolist()
    wrong = [row for row, token in enumerate(tokens) if not bench.agrees(row, logits[row], token)]
    return len(wrong) / len(params) + float(not result.valid.all())


def neighbours(vocab_size: int, device: torch.device, traits: GpuTraits, block: int) -> float:
    """Share of rows that depend on which rows are beside them; spoilt rows spoil no other."""
    # The interpreter takes a second a row.
    some = _params(1)[:: 2 if device.type == "cpu" else 1]
    params = [*some, SamplingParams(), SamplingParams(repetition_penalty=1.4)]
    logits = torch.randn(len(params), vocab_size, device=device) * 3

    def bench() -> Bench:
        return Bench(params, vocab_size, device, traits, block)

    together = bench().sample(logits).token_ids.tolist()
    order = list(range(len(params)))
    random.shuffle(order)
    shuffled = bench().sample(logits[order], order).token_ids.tolist()
    wrong = sum(together[row] != token for row, token in zip(order, shuffled, strict=True))
    spoilt = logits.clone()
    spoilt[1, 17], spoilt[4, 3], spoilt[6] = float("nan"), float("inf"), float("-inf")
    result = bench().sample(spoilt)
    valid = [row not in (1, 4, 6) for row in range(len(params))]
    wrong += result.valid.tolist() != valid
    tokens = result.token_ids.tolist()
    wrong += any(tokens[row] != together[row] for row in order if valid[row])
    wrong += not all(0 <= token < vocab_size for token in tokens)
    return wrong / len(params)


def penalties(vocab_size: int, device: torch.device, traits: GpuTraits, block: int) -> float:
    """Share of wrong tokens over steps whose penalties see what was sampled before."""
    kinds: tuple[dict[str, Any], ...] = (
        {"repetition_penalty": 4.0},
        {"frequency_penalty": 2.0},
        {"presence_penalty": 1.5, "do_sample": True, "top_k": 3, "seed": 5},
        {"repetition_penalty": 0.5, "presence_penalty": 2.0, "min_new_tokens": 2},
    )
    bench = Bench([SamplingParams(**kind) for kind in kinds], vocab_size, device, traits, block)
    row = torch.zeros(vocab_size, device=device)
    row[[100, 20, 30, 7, 200]] = torch.tensor([3.0, 2.5, 2.0, 2.8, 1.0], device=device)
    logits = row.repeat(len(kinds), 1)
    wrong = 0
    for _ in range(6):
        tokens = bench.sample(logits).token_ids.tolist()
        for index, token in enumerate(tokens):
            wrong += not bench.agrees(index, logits[index], token)
            bench.outputs[index].append(token)
    return wrong / (6 * len(kinds))


def logprobs(vocab_size: int, device: torch.device, traits: GpuTraits, block: int) -> float:
    """Worst error of log-probabilities; infinite where the most likely tokens are others."""
    several: tuple[dict[str, Any], ...] = (
        {"logprobs": True},
        {"do_sample": True, "seed": 5, "temperature": 3.0, "top_k": 50, "logprobs": True},
        {"top_n_tokens": 5, "logit_bias": {1: 60.0, 2: 1.0}, "logprobs": True},
        {"repetition_penalty": 2.0, "logprobs": True, "top_n_tokens": 20},
        {},
    )
    params = [SamplingParams(**kind) for kind in several]
    bench = Bench(params, vocab_size, device, traits, block)
    logits = torch.randn(len(params), vocab_size, device=device) * 3
    logits[3, 40:47] = 15.0
    result = bench.sample(logits)
    exact = logits.double().log_softmax(-1)
    assert result.logprobs is not None
    assert result.top_ids is not None
    assert result.top_logprobs is not None
    told = result.logprobs[:4].double()
    errors = [(told - exact.gather(-1, result.token_ids[:, None])[:4, 0]).abs().max()]
    if result.token_ids[2] != 1:
        return float("inf")
    for row, count in ((2, 5), (3, 20)):
        values, ids = exact[row].sort(descending=True, stable=True)
        if result.top_ids[row, :count].tolist() != ids[:count].tolist():
            return float("inf")
        errors.append((result.top_logprobs[row, :count] - values[:count]).abs().max())
    targets = torch.randint(0, vocab_size, (9,), device=device, dtype=torch.int32)
    found = bench.sampler.token_logprobs(logits, 1, targets, 3, 4)
    wanted = exact[1:5].gather(-1, targets[3:7, None].long())[:, 0]
    errors.append((found.double() - wanted).abs().max())
    return float(max(errors))


def feeding(vocab_size: int, device: torch.device, traits: GpuTraits, block: int) -> float:
    """Share of step inputs that are not what their rows sampled last, rows in any order."""
    params = [SamplingParams(), SamplingParams(do_sample=True, seed=1), SamplingParams()]
    bench = Bench(params, vocab_size, device, traits, block)
    logits = torch.randn(3, vocab_size, device=device)
    order = [2, 0, 1]
    tokens = bench.sample(logits, order).token_ids.tolist()
    inputs = torch.full((6,), -1, dtype=torch.int32, device=device)
    places, rows = (
        torch.tensor(values, dtype=torch.int32, device=device) for values in ([5, 1, 3], [1, 2, 0])
    )
    bench.sampler.feed(inputs, places, rows)
    of_row = dict(zip(order, tokens, strict=True))
    expected = [-1, of_row[2], -1, of_row[0], -1, of_row[1]]
    return sum(a != b for a, b in zip(inputs.tolist(), expected, strict=True)) / 6
