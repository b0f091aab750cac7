"""No serving kernel is compiled once more because a step has another number of tokens."""

from __future__ import annotations

from importlib import import_module

import pytest

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

MODULES = (
    "activation.triton", "attention.triton_decode", "attention.triton_prefill", "embedding.triton",
    "linear.triton_gated", "linear.triton_gemv", "linear.triton_skinny", "low_rank.triton",
    "norm.triton", "rotary.triton", "sampling.triton", "sampling.triton_draw",
    "sampling.triton_logprobs", "sampling.triton_rows", "step_inputs.triton",
)  # fmt: skip
VARYING = {"beside", "num_tokens", "num_sequences", "num_fed", "num_changed", "first_row"}


def kernels() -> list[JITFunction]:
    found = []
    for name in MODULES:
        module = import_module(f"headrace.kernels.{name}")
        found += [
            thing
            for key, thing in vars(module).items()
            if isinstance(thing, JITFunction) and key.endswith("_kernel")
        ]
    return found


def test_sizes_that_vary_from_step_to_step_are_not_specialised_on() -> None:
    """Triton tells 1, multiples of 16 and other integers apart unless told not to."""
    seen = 0
    for kernel in kernels():
        varying = VARYING & {parameter.name for parameter in kernel.params}
        free = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
        assert varying <= free, kernel.__name__
        seen += len(varying)
    assert seen >= 10
