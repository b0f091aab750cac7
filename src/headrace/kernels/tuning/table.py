"""The file that tuning results live in, with what they were measured on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from headrace.kernels.linear.triton import GemmChoice
from headrace.kernels.tuning import table_file
from headrace.kernels.tuning.table_file import StaleTable, save

__all__ = ["NOT_MEASURED", "StaleTable", "TunedShape", "TuningTable", "Validators", "load", "save"]

_FORMAT = 2
NOT_MEASURED = 0.0


class TunedShape(msgspec.Struct, frozen=True, kw_only=True):
    """The result for one weight shape and number of tokens; times in microseconds or 0."""

    num_rows: int
    columns: int
    tokens: int
    wide_output: bool
    choice: GemmChoice
    microseconds: float
    library_microseconds: float


class Validators(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal for results to hold."""

    device: str
    dtype: str
    torch: str
    triton: str
    runtime: str
    candidates: str
    library: str
    tensor_parallel: int = 1
    rank: int = 0


class TuningTable(msgspec.Struct, kw_only=True):
    """All results for one model on one device."""

    format: int = _FORMAT
    validators: Validators
    shapes: list[TunedShape]


def load(path: Path, validators: Validators) -> TuningTable | None:
    """The table in ``path``; ``None`` if there is no such file.

    Raises:
        StaleTable: The file is corrupt, of another format, or was measured on something else.
    """
    return table_file.load(path, TuningTable, _FORMAT, validators)
