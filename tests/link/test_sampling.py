"""Every bound of the sampling parameters, from one table."""

from __future__ import annotations

import math

import pytest

from headrace import SamplingParams
from headrace.link.errors import InvalidRequest
from headrace.link.sampling import BOUNDS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", "1"),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("typical_p", -0.1),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("top_n_tokens", -1),
        ("truncate", 0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_out_of_bound_values_are_refused_with_field_value_and_bound(field, value) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**{field: value}).check()
    assert refused.value.field == field
    assert f"`{field}` must be {BOUNDS[field]}, got {value!r}" == str(refused.value)


def test_the_edges_are_inside() -> None:
    SamplingParams(
        top_p=1.0,
        typical_p=1.0,
        frequency_penalty=-2.0,
        presence_penalty=2.0,
        seed=2**64 - 1,
        temperature=1e-6,
        min_new_tokens=0,
        logit_bias={5: -100.0},
        do_sample=True,
        best_of=2,
    ).check()


def test_best_of_without_sampling_and_wild_biases_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="best_of"):
        SamplingParams(best_of=2).check()
    with pytest.raises(InvalidRequest, match=r"logit_bias\.7"):
        SamplingParams(logit_bias={7: 101.0}).check()


def test_long_values_are_shortened_in_the_message() -> None:
    assert len(str(InvalidRequest("stop", "x" * 10_000, "short"))) < 150
