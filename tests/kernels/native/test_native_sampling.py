"""Draws and log-probabilities of the native kernels against the reference, rows of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.kernels.sampling import reference
from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.sampling.choices import DrawParameters, TokenChoices
from headrace.modeling.sampling.sampler import Sampler

_SHAPES = ["normal", "flat", "equal", "few values", "peaked", "huge", "tiny", "forbidden"]


def row_of(shape: str, vocab: int, seed: int) -> torch.Tensor:
    """Logits [vocab] of a kind that a threshold search could stumble over."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(vocab, generator=generator)
    if shape == "flat":
        return 1.0 + normal * 1e-6
    if shape == "equal":
        return torch.full((vocab,), 2.5)
    if shape == "few values":
        return (normal * 2).round()
    if shape == "peaked":
        normal[seed % vocab] = 40.0
    elif shape == "huge":
        return normal * 1e30
    elif shape == "tiny":
        return normal * 1e-30
    elif shape == "forbidden":
        forbidden = torch.rand(vocab, generator=generator) < 0.7
        forbidden[seed % vocab] = False
        return normal.masked_fill(forbidden, float("-inf"))
    return normal * 3


@pytest.fixture
def choices(instruction_set: str) -> TokenChoices:
    return NativeCpuBackend(threads=2, instruction_set=instruction_set).token_choices


def draw(
    choices: TokenChoices, logits: torch.Tensor, uniform: list[float], **values: list[Any]
) -> list[int]:
    count, vocab = logits.shape
    neutral = {"temperature": 1.0, "top_k": vocab, "top_p": 1.0, "typical_p": 1.0}
    wanted = {name: values.get(name, [value] * count) for name, value in neutral.items()}
    parameters = DrawParameters(
        top_k=np.array(wanted.pop("top_k"), dtype=np.int64),
        uniform=np.array(uniform, dtype=np.float32),
        **{name: np.array(value, dtype=np.float32) for name, value in wanted.items()},
    )
    ids: list[int] = choices.draw(logits, np.arange(count), parameters).tolist()
    return ids


def assert_plausible(
    token: int, row: torch.Tensor, number: float, settings_of_row: dict[str, Any]
) -> None:
    """``token`` is what the reference draws, but for the last bits of cumulative sums.

    Where one bit of a mass decides whether a token is kept, the reference's float32 sums may decide
    otherwise than float64 ones: shares a little smaller and larger bound what may be drawn.
    """
    # Quotients are float32 in both: rounding makes ties.
    scaled = (row / np.float32(settings_of_row["temperature"])).double()
    accepted = set()
    for factor in (1 - 1e-5, 1.0, 1 + 1e-5):
        shares = {
            name: min(value * factor, 1.0)
            if name in ("top_p", "typical_p") and value < 1
            else value
            for name, value in settings_of_row.items()
        }
        warped = reference.warp(
            scaled,
            1.0,
            shares["top_k"],
            shares["top_p"] if shares["top_p"] < 1 else None,
            shares["typical_p"] if shares["typical_p"] < 1 else None,
        )
        cumulative = warped.softmax(-1).cumsum(-1)
        for shift in (-2e-6, 0.0, 2e-6):
            target = min(max(number + shift, 0.0), 1 - 1e-12) * cumulative[-1]
            accepted.add(int((cumulative <= target).sum()))
    low, high = min(accepted), max(accepted)
    assert low <= token <= high, (token, sorted(accepted))
    assert row[token] > float("-inf")


_CASE = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.05, 0.7, 1.0, 1.3, 30.0]),
        "top_k": st.sampled_from([1, 2, 5, 50, 10**9]),
        "top_p": st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999999, 1.0]),
        "typical_p": st.sampled_from([1e-6, 0.2, 0.95, 1.0]),
    }
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    case=_CASE,
    shape=st.sampled_from(_SHAPES),
    vocab=st.sampled_from([1, 2, 15, 16, 17, 100, 1000, 4097]),
    seed=st.integers(0, 10_000),
    number=st.floats(0, 1, exclude_max=True, width=32),
)
def test_draws_what_the_reference_draws(
    choices: TokenChoices, case: dict[str, Any], shape: str, vocab: int, seed: int, number: float
) -> None:
    number = min(number, 1 - 2.0**-24)
    row = row_of(shape, vocab, seed)
    bounded = {**case, "top_k": min(case["top_k"], vocab)}
    if shape in ("flat", "tiny"):
        # Information contents that agree but for the last bits of a logarithm are in no order.
        bounded["typical_p"] = 1.0
    values = {name: [value] for name, value in bounded.items()}
    token = draw(choices, row[None], [number], **values)[0]
    assert_plausible(token, row, number, bounded)


def kept_tokens(choices: TokenChoices, row: torch.Tensor, **values: Any) -> set[int]:
    """Every token that can be drawn, by asking at many numbers."""
    numbers = (np.arange(4000) + 0.5) / 4000
    rows = row.expand(len(numbers), -1).contiguous()
    settings_of_rows = {name: [value] * len(numbers) for name, value in values.items()}
    return set(draw(choices, rows, numbers.tolist(), **settings_of_rows))


def test_ties_are_kept_as_the_reference_keeps_them(choices: TokenChoices) -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0, -1.0] + [float("-inf")] * 40)
    assert kept_tokens(choices, row, top_k=1) == {1, 3}
    assert kept_tokens(choices, row, top_k=3) == {1, 2, 3, 4, 5}
    everything = row.softmax(-1)
    # One of three equal tokens is needed: the first.
    share = float(2 * everything[1] + 0.5 * everything[2])
    assert kept_tokens(choices, row, top_p=share) == {1, 2, 3}
    assert kept_tokens(choices, row, top_p=1e-7) == {1}
    flat = torch.zeros(100)
    assert kept_tokens(choices, flat, top_p=0.25) == set(range(25))
    assert kept_tokens(choices, flat, typical_p=0.25) == set(range(25))
    assert kept_tokens(choices, flat, top_k=10) == set(range(100))
    assert kept_tokens(choices, flat) == set(range(100))


def test_the_kept_set_is_the_references(choices: TokenChoices) -> None:
    for seed, values in enumerate(
        [
            {"top_k": 7},
            {"top_p": 0.8},
            {"typical_p": 0.6},
            {"top_k": 40, "top_p": 0.7, "typical_p": 0.5, "temperature": 1.5},
        ]
    ):
        row = row_of("normal", 300, seed)
        everything = {"temperature": 1.0, "top_k": None, "top_p": None, "typical_p": None, **values}
        warped = reference.warp(row, **everything)
        # Rarer tokens fall between the numbers.
        expected = set((warped.softmax(-1) > 1 / 2000).nonzero()[:, 0].tolist())
        drawn = kept_tokens(choices, row, **values)
        assert expected <= drawn <= set((warped > float("-inf")).nonzero()[:, 0].tolist())


def test_a_row_depends_on_nothing_beside_it(instruction_set: str) -> None:
    torch.manual_seed(0)
    logits = torch.stack([row_of(shape, 5003, 1) for shape in _SHAPES * 4])
    count = len(logits)
    values: dict[str, list[Any]] = {
        "temperature": [0.5 + r % 3 for r in range(count)],
        "top_k": [[5003, 100, 7][r % 3] for r in range(count)],
        "top_p": [[0.9, 1.0, 0.3][r // 3 % 3] for r in range(count)],
        "typical_p": [[1.0, 0.8][r // 9 % 2] for r in range(count)],
    }
    numbers = [(r * 0.37) % 1 for r in range(count)]
    results = []
    for threads in (1, 2, 3):
        choices = NativeCpuBackend(threads=threads, instruction_set=instruction_set).token_choices
        results.append(draw(choices, logits, numbers, **values))
        alone = []
        for r in range(count):
            own = {name: [value[r]] for name, value in values.items()}
            alone += draw(choices, logits[r : r + 1], [numbers[r]], **own)
        results.append(alone)
    assert all(result == results[0] for result in results)


def test_what_is_no_number_spoils_its_own_row_only(choices: TokenChoices) -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(0))
    good = draw(choices, logits, [0.5] * 6, top_p=[0.9] * 6)
    logits[1, 17], logits[2, 3], logits[4] = float("nan"), float("inf"), float("-inf")
    spoilt = draw(choices, logits, [0.5] * 6, top_p=[0.9] * 6)
    assert [spoilt[i] for i in (0, 3, 5)] == [good[i] for i in (0, 3, 5)]
    assert all(0 <= token < 100 for token in spoilt)


def test_a_temperature_near_zero_is_greedy(choices: TokenChoices) -> None:
    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    for temperature in (1e-6, 1e-38):
        drawn = draw(choices, logits, [0.999], temperature=[temperature])
        assert drawn == [int(logits.argmax())]


@pytest.mark.parametrize("vocab", [1, 16, 45, 1000])
@pytest.mark.parametrize("shape", _SHAPES)
def test_logprobs(choices: TokenChoices, shape: str, vocab: int) -> None:
    logits = torch.stack([row_of(shape, vocab, seed) for seed in range(5)])
    tokens = logits.argmax(-1)
    exact = logits.double().log_softmax(-1)
    for top in {0, 1, min(5, vocab), vocab}:
        chosen, ids, values = choices.logprobs(logits, tokens, top)
        close = {"rtol": 2e-6, "atol": 2e-5}
        torch.testing.assert_close(chosen, exact.gather(-1, tokens[:, None])[:, 0].float(), **close)
        order = logits.sort(descending=True, stable=True).indices[:, :top]
        assert torch.equal(ids, order)
        torch.testing.assert_close(values, exact.gather(-1, order).float(), **close)


def test_logprobs_of_what_is_no_number(choices: TokenChoices) -> None:
    logits = torch.zeros(3, 20)
    logits[1, 4] = float("nan")
    chosen, ids, values = choices.logprobs(logits, torch.zeros(3, dtype=torch.int64), 3)
    assert chosen.isnan().tolist() == [False, True, False]
    assert values.isnan().any(-1).tolist() == [False, True, False]
    assert ids[2].tolist() == [0, 1, 2]


def test_arrays_of_other_sizes_are_refused(choices: TokenChoices) -> None:
    logits = torch.zeros(2, 20)
    with pytest.raises(IndexError, match=r"rows\[0\] is 2"):
        choices.draw(
            logits,
            np.array([2]),
            DrawParameters(
                *(np.ones(1, dtype=kind) for kind in ["f", "l", "f", "f", "f"])  # type: ignore[arg-type]
            ),
        )
    with pytest.raises(IndexError, match=r"tokens\[1\] is 20"):
        choices.logprobs(logits, torch.tensor([0, 20]), 1)
    with pytest.raises(ValueError, match="more tokens than the vocabulary"):
        choices.logprobs(logits, torch.tensor([0, 1]), 21)


def test_a_sampler_chooses_the_same_by_either(choices: TokenChoices) -> None:
    vocab, rows = 3000, np.arange(60, dtype=np.int32)
    logits = torch.randn(len(rows), vocab, generator=torch.Generator().manual_seed(3)) * 3
    results = []
    for own in (choices, None):
        sampler = Sampler(len(rows), 64, vocab, torch.device("cpu"), own)
        for row in rows.tolist():
            sampling = SamplingParams(
                do_sample=row % 5 != 0,
                temperature=0.5 + row % 4,
                top_k=[None, 40][row % 2],
                top_p=[None, 0.9, 0.4][row % 3],
                typical_p=[None, None, None, 0.8][row % 4],
                repetition_penalty=[1.0, 1.0, 1.3][row % 3],
                logprobs=True,
                top_n_tokens=4,
                seed=row,
            )
            sampler.set_row(row, sampling, [5, 9, 700], [], (7,))
        positions = np.full(len(rows), 3, dtype=np.int32)
        results.append(sampler.sample(logits, rows, positions, torch.from_numpy(rows)))
    ours, theirs = results
    for name in ("token_ids", "valid", "logprobs", "top_ids", "top_logprobs"):
        actual, expected = getattr(ours, name), getattr(theirs, name)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
