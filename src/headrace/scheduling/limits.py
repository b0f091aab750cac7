"""What one scheduler may use: tokens a step, rows, blocks, queue places."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from headrace.link.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Bounds and policies of a scheduler, fixed for its life.

    Attributes:
        token_budget: Tokens computed in one step at most; at least ``max_running``, so that
            every running sequence can always advance.
        max_running: Sequences that run at once; rows are numbered 0 to ``max_running - 1``.
        max_waiting: Requests that wait at once; one more raises ``QueueFull``.
        block_size: Tokens in one KV block.
        num_blocks: KV blocks, numbered from 0.
        max_sequence_length: Prompt plus output of one request, in tokens.
        max_prefill_chunk: Tokens of one prompt in one step at most; ``None``: the budget.
        mixed_token_budget: Tokens of a step in which sequences decode, as far as prompts fill it;
            ``None``: ``token_budget``. Prompts always get as many as there are such sequences.
        ageing_seconds: Waiting so long is worth one level of priority.
        prefix_cache: Reuse the blocks of equal prefixes.
        max_bypasses: How many later requests may overtake one that does not fit yet; after
            that blocks are kept for it.
        admission_lookahead: How many requests that do not fit are looked past in one step.
    """

    token_budget: int
    max_running: int
    max_waiting: int
    block_size: int
    num_blocks: int
    max_sequence_length: int
    max_prefill_chunk: int | None = None
    mixed_token_budget: int | None = None
    ageing_seconds: float = 1.0
    prefix_cache: bool = True
    max_bypasses: int = 64
    admission_lookahead: int = 8

    def __post_init__(self) -> None:
        """Hold every limit against its bound.

        Raises:
            ConfigurationError: naming the limit, its value and its bound.
        """
        for name in (
            "token_budget",
            "max_running",
            "max_waiting",
            "block_size",
            "num_blocks",
            "max_sequence_length",
            "admission_lookahead",
        ):
            _require(getattr(self, name) >= 1, name, getattr(self, name), ">= 1")
        _require(
            self.token_budget >= self.max_running,
            "token_budget",
            self.token_budget,
            f">= max_running ({self.max_running})",
        )
        _require(
            self.max_prefill_chunk is None or self.max_prefill_chunk >= 1,
            "max_prefill_chunk",
            self.max_prefill_chunk,
            ">= 1",
        )
        _require(
            self.mixed_token_budget is None or self.mixed_token_budget >= 1,
            "mixed_token_budget",
            self.mixed_token_budget,
            ">= 1",
        )
        _require(self.max_bypasses >= 0, "max_bypasses", self.max_bypasses, ">= 0")
        _require(
            isfinite(self.ageing_seconds) and self.ageing_seconds > 0,
            "ageing_seconds",
            self.ageing_seconds,
            "> 0",
        )

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold ``num_tokens`` tokens of one sequence."""
        return -(-num_tokens // self.block_size)


def _require(holds: bool, name: str, value: object, bound: str) -> None:
    if not holds:
        raise ConfigurationError(f"{name} must be {bound}, got {value!r}")
