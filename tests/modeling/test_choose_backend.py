"""Which backend serves which model, and what is said where none can."""

from __future__ import annotations

import pytest

from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import choose_backend

ORDINARY = {"head_dim": 64, "block_size": 16}


def test_native_kernels_serve_where_they_are() -> None:
    expected = "native" if native.available() else "torch"
    assert choose_backend(device="cpu", **ORDINARY).backend.name == expected


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"head_dim": 80, "block_size": 16}, "head size 80"),
        ({"head_dim": 64, "block_size": 8}, "block size of 8"),
    ],
)
def test_a_shape_without_native_kernels_is_served_by_torch_and_the_reason_said(
    shape: dict[str, int], reason: str
) -> None:
    choice = choose_backend(device="cpu", **shape)
    assert choice.backend.name == "torch"
    if native.available():
        assert reason in choice.reason
        with pytest.raises(ConfigurationError, match=reason):
            choose_backend("native", device="cpu", **shape)


def test_float16_on_a_cpu_is_served_by_torch() -> None:
    choice = choose_backend(device="cpu", dtype="float16", **ORDINARY)
    assert (choice.backend.name, choice.dtype_name) == ("torch", "float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "abacus"}, "--backend must be one of auto, .*got `abacus`"),
        ({"dtype": "int3"}, "--dtype must be one of auto, .*got `int3`"),
        ({"name": "triton", "device": "cpu"}, "--backend triton needs a GPU"),
        ({"name": "native", "dtype": "float16", "device": "cpu"}, "bfloat16 or float32"),
    ],
)
def test_what_cannot_be_had_is_refused_by_flag(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_backend(**arguments, **ORDINARY)
