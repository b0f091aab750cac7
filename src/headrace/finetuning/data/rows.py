"""One row of a data set as it was read, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """A row before any check.

    Attributes:
        file: Where it was read, as the user would name it.
        line: Its line in a text file, its index from 1 elsewhere.
        values: Column to value.
    """

    file: str
    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """Why a row cannot be trained on.

    Attributes:
        field: The column at fault, such as ``messages[2].role``; empty: the row as a whole.
        reason: Completes "the field …" with what was found and what was expected.
    """

    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: "
        return f"{place}`{self.field}` {self.reason}" if self.field else f"{place}{self.reason}"


class RowError(ValueError):
    """Raised while one row is read; becomes a ``BadRow``.

    Attributes:
        field: As in ``BadRow``.
        reason: As in ``BadRow``.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"`{field}` {reason}" if field else reason)


def shortened(value: object) -> str:
    """``repr`` of a value, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
