"""Tuning results on disk: written whole or not at all, used only where they were measured."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

_logger = logging.getLogger(__name__)


class StaleTable(Exception):
    """A tuning file that must not be used; the message says why."""


class _Table(Protocol):
    format: int
    validators: Any


T = TypeVar("T", bound=_Table)


def load(path: Path, kind: type[T], format: int, validators: msgspec.Struct) -> T | None:
    """The table in ``path``; ``None`` if there is no such file.

    Args:
        kind: Its type: a ``msgspec.Struct`` with ``format`` and ``validators``.
        format: Number of the format that this version of headrace writes.
        validators: What must be equal to what was measured on.

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
        table = msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise StaleTable(f"{path} is corrupt: {error}") from error
    if table.format != format:
        raise StaleTable(f"{path} has format {table.format}, not {format}")
    for name in validators.__struct_fields__:
        found, wanted = getattr(table.validators, name), getattr(validators, name)
        if found != wanted:
            raise StaleTable(f"{path} was measured with {name} {found!r}, here it is {wanted!r}")
    return table


def save(path: Path, table: msgspec.Struct) -> None:
    """Write ``table`` whole or not at all; where nothing can be written, that is reported."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1))
        scratch.replace(path)
    except OSError as error:
        _logger.warning("tuning results are not kept: %s", error)
