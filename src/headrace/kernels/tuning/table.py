"""The file that tuning results live in, with what they were measured on."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from headrace.kernels.linear.triton import GemmChoice

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


class StaleTable(Exception):
    """A tuning file that must not be used; the message says why."""


def load(path: Path, validators: Validators) -> TuningTable | None:
    """The table in ``path``; ``None`` if there is no such file.

    Raises:
        StaleTable: The file is corrupt, of another format, or was measured on something else.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StaleTable(f"{path} cannot be read: {error}") from error
    try:
        table = msgspec.json.decode(content, type=TuningTable)
    except msgspec.DecodeError as error:
        raise StaleTable(f"{path} is corrupt: {error}") from error
    if table.format != _FORMAT:
        raise StaleTable(f"{path} has format {table.format}, not {_FORMAT}")
    for name in validators.__struct_fields__:
        found, wanted = getattr(table.validators, name), getattr(validators, name)
        if found != wanted:
            raise StaleTable(f"{path} was measured with {name} {found!r}, here it is {wanted!r}")
    return table


def save(path: Path, table: TuningTable) -> None:
    """Write ``table`` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1))
    scratch.replace(path)
