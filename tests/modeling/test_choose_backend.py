"""Which backend serves which model, and what is said where none can."""

from __future__ import annotations

import pytest

from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.sizes import kv_bytes_per_token
from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import choose_backend
from headrace.modeling.operations import AttentionShape

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
        ({"kv_cache_dtype": "int4"}, "--kv-cache-dtype must be one of auto, int8, got `int4`"),
        (
            {"name": "torch", "device": "cpu", "kv_cache_dtype": "int8"},
            "--kv-cache-dtype int8: only the native backend has it, and torch serves",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_by_flag(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        choose_backend(**arguments, **ORDINARY)


@pytest.mark.skipif(not native.available(), reason="no native kernels")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_cache_in_int8_takes_the_bytes_that_are_planned_for_it(dtype: str) -> None:
    config = resolve(None).config
    choice = choose_backend("native", "cpu", dtype, kv_cache_dtype="int8", **ORDINARY)
    shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim, 0.125, None)
    a_layer = choice.backend.operations.cache_bytes_per_block(shape, 16)
    assert a_layer * config.num_layers == 16 * kv_bytes_per_token(config, "int8")
