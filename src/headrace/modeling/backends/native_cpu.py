"""The native CPU backend: operations are recorded once, then C++ replays them step by step."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from headrace.kernels import native
from headrace.kernels.native.memory import gather_into_huge_pages
from headrace.kernels.tuning.cpu_tuner import CpuLinearTuner, TunedLinear
from headrace.link.errors import ConfigurationError
from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import Computation
from headrace.modeling.backends.native_operations import DTYPE_NAMES, NativeOperations
from headrace.modeling.backends.native_sampling import NativeChoices
from headrace.modeling.step import StepInputs


class NativeProgram:
    """A recorded computation and the pool that replays it."""

    def __init__(self, program: Any, pool: Any) -> None:
        self._program = program
        self._pool = pool

    def run(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
    ) -> None:
        """Compute one step; the interpreter lock is released meanwhile.

        Raises:
            ValueError: More tokens, sequences or sampled tokens than the buffers hold.
            IndexError: A token id, position, slot or block that is out of its range.
        """
        self._program.run(self._pool, num_tokens, num_sequences, num_sampled)

    def set_profiling(self, on: bool) -> None:
        """Start to add up each call's time, from zero, or stop."""
        self._program.set_profiling(on)

    def profile(self) -> list[tuple[str, float]]:
        """Name and seconds of each call, in order, since profiling was turned on."""
        return list(self._program.profile())

    def linear_bytes(self) -> list[tuple[str, int]]:
        """Name, as ``profile`` has it, and bytes of the weights of each linear."""
        return list(self._program.linear_bytes())


class NativeCpuBackend:
    """C++ kernels on the CPU; see ``headrace.kernels.native`` for what they need.

    Args:
        dtype: bfloat16 or float32.
        threads: Worker threads; ``None``: as many as this process may use CPUs.
        instruction_set: ``None``: the fastest that this machine runs.
        quantized: Compute GGUF's Q4_0, Q4_1 and Q8_0 in their blocks; ``False`` unpacks them.
        cpus: One CPU for each thread to be pinned to; ``None``: the scheduler decides.
        cache_dtype: Of keys and values: int8, or ``None`` for ``dtype``.
        tuning_directory: Where measured plans of linears are kept; ``None``: none are measured.

    Raises:
        NativeKernelsUnavailable: No extension, or a CPU below AVX2.
        ConfigurationError: A dtype that no kernel computes in.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.bfloat16,
        threads: int | None = None,
        instruction_set: str | None = None,
        quantized: bool = True,
        cpus: list[int] | None = None,
        cache_dtype: torch.dtype | None = None,
        tuning_directory: Path | None = None,
    ) -> None:
        if dtype not in DTYPE_NAMES:
            raise ConfigurationError(
                f"the native CPU backend computes in bfloat16 or float32, not {dtype}"
            )
        if cache_dtype not in (None, dtype, torch.int8):
            raise ConfigurationError(
                f"the native CPU backend holds keys and values in {dtype} or int8, "
                f"not {cache_dtype}"
            )
        self._instruction_set = native.choose_instruction_set(instruction_set)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = native.extension().ThreadPool(self._threads, cpus or [])
        self._choices = NativeChoices(self._pool, self._instruction_set)
        self._tuner: CpuLinearTuner | None = None
        if tuning_directory is not None:
            self._tuner = CpuLinearTuner(self._pool, self._instruction_set, tuning_directory)
        self._operations = NativeOperations(
            dtype, cache_dtype or dtype, self._instruction_set, self._pool, quantized
        )

    @property
    def name(self) -> str:
        """As ``--backend`` names it."""
        return "native"

    @property
    def instruction_set(self) -> str:
        """The instruction set in use."""
        return self._instruction_set

    @property
    def threads(self) -> int:
        """Worker threads, the calling thread among them."""
        return self._threads

    @property
    def operations(self) -> NativeOperations:
        """The operations; outside ``compile`` each computes at once."""
        return self._operations

    @property
    def tuned_linears(self) -> list[TunedLinear]:
        """What was chosen for the linears of compiled programs."""
        return [] if self._tuner is None else self._tuner.results

    @property
    def token_choices(self) -> NativeChoices:
        """What a sampler chooses tokens by."""
        return self._choices

    def compile(
        self, computation: Computation, step: StepInputs, activations: Activations
    ) -> NativeProgram:
        """Record ``computation`` once, on the whole buffers, and plan its linears."""
        for field in dataclasses.fields(activations):
            # Logits have a row for every sequence that could run, and few steps fill them.
            if field.name != "logits":
                gather_into_huge_pages(getattr(activations, field.name))
        program = self._operations.record(computation, step, activations)
        if self._tuner is not None:
            self._tuner.tune(program, lambda: _fill(activations))
        return NativeProgram(program, self._pool)


def _fill(activations: Activations) -> None:
    """What linears read, as large as normalised numbers are, and one in 160 much larger.

    Elements that dominate a fifth of the blocks of 32, as in a model, cost time of their own.
    """
    for name in ("normed", "attended", "activated", "final"):
        values: torch.Tensor = getattr(activations, name).normal_()
        values[torch.rand(values.shape) < 1 / 160] *= 20
