"""Kinds of setting: how a value from a command line, the environment or a TOML file is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from headrace.link.adapters import is_adapter_name

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Kind(Protocol):
    """How the raw value of a setting becomes its value."""

    @property
    def metavar(self) -> str:
        """What stands for the value in ``--help``; empty for a switch."""

    @property
    def bound(self) -> str:
        """What is accepted, in words that complete "must be …"."""

    def read(self, raw: object) -> object:
        """The value of ``raw``: text, or what TOML made of it.

        Raises:
            ValueError: ``raw`` is not ``bound``.
        """


@dataclass(frozen=True)
class Text:
    """Any text but the empty one."""

    metavar: str = "TEXT"
    bound: str = "a text that is not empty"

    def read(self, raw: object) -> str:
        """``raw`` without surrounding space."""
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(self.bound)
        return raw.strip()


@dataclass(frozen=True)
class Integer:
    """A whole number from ``minimum`` to ``maximum``, both included."""

    minimum: int = 0
    maximum: int | None = None
    metavar: str = "N"

    @property
    def bound(self) -> str:
        """The interval in words."""
        if self.maximum is None:
            return f"a whole number of at least {self.minimum}"
        return f"a whole number from {self.minimum} to {self.maximum}"

    def read(self, raw: object) -> int:
        """``raw`` as a whole number."""
        if isinstance(raw, str):
            raw = int(raw)
        if not isinstance(raw, int) or isinstance(raw, bool):
            raise ValueError(self.bound)
        if raw < self.minimum or (self.maximum is not None and raw > self.maximum):
            raise ValueError(self.bound)
        return raw


@dataclass(frozen=True)
class Number:
    """A finite number above ``above`` (or zero), at most ``maximum``."""

    above: float = 0.0
    maximum: float | None = None
    or_zero: bool = False
    metavar: str = "NUMBER"

    @property
    def bound(self) -> str:
        """The interval in words."""
        upper = "" if self.maximum is None else f" and at most {self.maximum:g}"
        lower = "of at least 0" if self.or_zero else f"greater than {self.above:g}"
        return f"a number {lower}{upper}"

    def read(self, raw: object) -> float:
        """``raw`` as a number."""
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raise ValueError(self.bound)
        value = float(raw)
        if not isfinite(value) or (value <= self.above and not (self.or_zero and value == 0)):
            raise ValueError(self.bound)
        if self.maximum is not None and value > self.maximum:
            raise ValueError(self.bound)
        return value


@dataclass(frozen=True)
class Size:
    """A number of bytes, with a unit or without."""

    metavar: str = "SIZE"
    bound: str = "a number of bytes such as 2000000, 512MiB or 2GB"

    def read(self, raw: object) -> int:
        """Bytes: ``kB``, ``MB``, … are powers of 1000; ``KiB`` (or ``K``), … powers of 1024."""
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            raise ValueError(self.bound)
        found = _SIZE.fullmatch(str(raw).strip())
        if found is None:
            raise ValueError(self.bound)
        number, prefix, binary = found.groups()
        decimal = str(raw).strip().lower().endswith("b") and not binary
        value = int(float(number) * (1000 if decimal else 1024) ** _POWER[(prefix or "").lower()])
        if value <= 0:
            raise ValueError(self.bound)
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def metavar(self) -> str:
        """The words, as a command line shows alternatives."""
        return "|".join(self.words)

    @property
    def bound(self) -> str:
        """The words in a sentence."""
        return f"one of {', '.join(self.words)}"

    def read(self, raw: object) -> str:
        """The word, in lower case."""
        word = raw.strip().lower() if isinstance(raw, str) else raw
        if not isinstance(word, str) or word not in self.words:
            raise ValueError(self.bound)
        return word


@dataclass(frozen=True)
class Switch:
    """On or off: a flag without a value, a boolean elsewhere."""

    metavar: str = ""
    bound: str = "true or false"

    def read(self, raw: object) -> bool:
        """Whether it is on."""
        if isinstance(raw, bool):
            return raw
        word = str(raw).strip().lower()
        if word in _TRUE:
            return True
        if word in _FALSE:
            return False
        raise ValueError(self.bound)


@dataclass(frozen=True)
class Listing:
    """Several texts: the flag repeated, or separated by commas; an array in a file."""

    metavar: str = "TEXT,…"
    bound: str = "texts separated by commas"

    def read(self, raw: object) -> tuple[str, ...]:
        """The texts in order."""
        parts: list[object] = list(raw) if isinstance(raw, list | tuple) else [raw]
        texts: list[str] = []
        for part in parts:
            if not isinstance(part, str):
                raise ValueError(self.bound)
            texts += [piece.strip() for piece in part.split(",") if piece.strip()]
        if not texts:
            raise ValueError(self.bound)
        return tuple(texts)


@dataclass(frozen=True)
class NamedAdapters:
    """Adapters by name, each a directory or hub id: ``poet=DIR,lawyer=DIR``; a table in a file.

    An entry without a name is called what it is, as in TGI.
    """

    metavar: str = "NAME=DIR,…"
    bound: str = (
        "adapters as in NAME=DIR,NAME2=DIR2, each name once and of letters, digits and ._-/:@+~"
    )

    def read(self, raw: object) -> dict[str, str]:
        """Name to directory, in order."""
        if isinstance(raw, dict):
            pairs = list(raw.items())
        else:
            texts = Listing().read(raw)
            pairs = [(n, p) if eq else (t, t) for t in texts for n, eq, p in [t.partition("=")]]
        found: dict[str, str] = {}
        for name, path in pairs:
            if not isinstance(name, str) or not isinstance(path, str):
                raise ValueError(self.bound)
            name, path = name.strip(), path.strip()
            if not is_adapter_name(name) or not path or name in found:
                raise ValueError(self.bound)
            found[name] = path
        return found
