"""Where the fields of a step's inputs lie in one int32 buffer, the same on host and device."""

from __future__ import annotations

from dataclasses import dataclass

MOST_CHANGED = 2048
"""Entries of block tables that one step may change by way of its inputs."""


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Fields of a token each, then fields of a sequence each, then changes of block tables.

    Attributes:
        token_fields: Number of fields of ``max_tokens`` entries.
        row_fields: Number of fields of ``row_capacity`` entries.
        max_tokens: Most tokens of a step, or some more.
        row_capacity: Most sequences of a step and one, since ``query_start`` has one more, or some
            more.
    """

    token_fields: int
    row_fields: int
    max_tokens: int
    row_capacity: int

    @property
    def changed_places(self) -> int:
        """First entry of the changed places: indices into the flat block tables."""
        return self.token_fields * self.max_tokens + self.row_fields * self.row_capacity

    @property
    def changed_blocks(self) -> int:
        """First entry of what is written there."""
        return self.changed_places + MOST_CHANGED

    @property
    def total(self) -> int:
        """Entries of the whole buffer."""
        return self.changed_blocks + MOST_CHANGED

    def start(self, field: int) -> int:
        """First entry of a field, those of tokens first."""
        if field < self.token_fields:
            return field * self.max_tokens
        return self.token_fields * self.max_tokens + (field - self.token_fields) * self.row_capacity
