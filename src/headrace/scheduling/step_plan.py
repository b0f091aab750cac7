"""One planned step: who computes which tokens, and what changed since the plan before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from headrace.scheduling.sequence import Sequence


# Two of these are made for every sequence in every step: a msgspec struct costs a third of a
# dataclass, and the garbage collector need not look at it.
class ScheduledSequence(msgspec.Struct, eq=False, gc=False):
    """The tokens of one sequence in one step.

    Attributes:
        sequence: Whose tokens.
        start: Position of the first.
        num_tokens: How many; positions ``start`` to ``start + num_tokens - 1``.
        samples: Whether the last of them is the sequence's last, so that a token is sampled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool


class AppendedBlock(NamedTuple):
    """``block_table[table_index]`` of a row that was already admitted is now ``block``."""

    row: int
    table_index: int
    block: int


@dataclass(slots=True, eq=False)
class StepPlan:
    """What to compute in one step. Apply ``freed_rows``, ``admitted``, ``appended`` in that order.

    The three lists say all that changed in rows and block tables since the previous plan.

    Attributes:
        number: Counts plans from 1.
        scheduled: Sequences of the step: those with one token first, long ones before short ones,
            then prompt chunks.
        admitted: Sequences that got a row in this step, with their whole ``block_table``; a
            sequence that was preempted comes here again, with its generated tokens in ``tokens``.
        appended: Blocks added to rows admitted in earlier plans.
        freed_rows: Rows given up since the previous plan; one may reappear in ``admitted``.
        num_tokens: Tokens to compute.
        num_samples: Tokens to sample.
    """

    number: int
    scheduled: list[ScheduledSequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    appended: list[AppendedBlock] = field(default_factory=list)
    freed_rows: list[int] = field(default_factory=list)
    num_tokens: int = 0
    num_samples: int = 0


class SequenceOutput(msgspec.Struct, eq=False, gc=False):
    """The token that a completed step gave a sequence.

    Attributes:
        sequence: Whose token; ended if ``finish_reason`` is set.
        sample_index: Its place among the step's sampled tokens.
        token_id: The token.
        finish_reason: ``length``, ``eos_token`` or ``None``.
        queue_seconds: With the first token: from arrival to the first planned step.
        cached_tokens: With the first token: prompt tokens taken from the prefix cache.
    """

    sequence: Sequence
    sample_index: int
    token_id: int
    finish_reason: str | None
    queue_seconds: float | None
    cached_tokens: int | None
