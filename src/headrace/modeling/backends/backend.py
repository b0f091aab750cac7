"""What a backend is: the operations on its device and the way to run a sequence of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from headrace.modeling.activations import Activations
from headrace.modeling.operations import Operations
from headrace.modeling.step import StepInputs

Computation = Callable[[StepInputs, Activations], None]
"""A sequence of ``Operations`` calls on the given buffers, and nothing else."""


class Program(Protocol):
    """A computation made ready to run on the buffers that it was compiled for."""

    def run(
        self,
        num_tokens: int,
        num_sequences: int,
        num_sampled: int,
        max_query_length: int,
        max_context_length: int,
    ) -> None:
        """Compute one step of T tokens, S sequences and R sampled tokens, all at least 1.

        The buffers' first T, S (``query_start``: S + 1) and R entries are filled; beyond lies
        what earlier steps left there. On a GPU the work is queued on the current stream.
        """


@runtime_checkable
class CapturesGraphs(Protocol):
    """A program that can be replayed from captured graphs."""

    def capture(self) -> None:
        """Capture them, over the buffers and caches as they are now."""


@runtime_checkable
class TimesCalls(Protocol):
    """A program that can say what each of its calls takes."""

    def set_profiling(self, on: bool) -> None:
        """Start to add up each call's time, from zero, or stop."""

    def profile(self) -> list[tuple[str, float]]:
        """Name and seconds of each call, in order, since profiling was turned on."""

    def linear_bytes(self) -> list[tuple[str, int]]:
        """Name, as ``profile`` has it, and bytes of the weights of each linear."""


class Backend(Protocol):
    """A device with its operations. Outside ``compile`` an operation computes at once."""

    @property
    def name(self) -> str:
        """As ``--backend`` names it."""

    @property
    def operations(self) -> Operations:
        """The operations on this backend's device."""

    def compile(
        self, computation: Computation, step: StepInputs, activations: Activations
    ) -> Program:
        """Make ``computation`` ready to be run again and again.

        Args:
            computation: ``Decoder.body`` or ``Decoder.head``, bound to its caches. An eager
                backend calls it with views of exactly T, S and R at each run; a recording one
                calls it here, once, with the whole buffers and keeps the calls it sees.
            step: Buffers at capacity. They stay in place for the life of the program.
            activations: The same.
        """
