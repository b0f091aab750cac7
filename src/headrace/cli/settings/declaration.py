"""What one setting is: its name everywhere, its kind, its meaning and whom it is handed to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from headrace.cli.settings.kinds import Kind


class Part(Enum):
    """Who is handed a setting."""

    ENGINE = "engine"
    TRANSPORT = "transport"
    FINETUNE = "finetune"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting that headrace honours.

    Attributes:
        name: The flag without its dashes; TGI's where TGI has one.
        help: One line.
        part: Whose settings hold it.
        field: Its field there; ``name`` with underscores unless given.
        default_text: What happens when it is absent, where the part's default is ``None``.
        tgi: Whether TGI has it: then its environment variable bears no prefix.
        aliases: Other flags for the same, without their dashes.
        letter: The short flag.
    """

    name: str
    kind: Kind
    help: str
    part: Part
    field: str = ""
    default_text: str = ""
    tgi: bool = True
    aliases: tuple[str, ...] = ()
    letter: str = ""

    @property
    def flag(self) -> str:
        """As typed on a command line."""
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """Its key in a settings file, and its name in Python."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Its environment variables: its own, then those of its aliases."""
        prefix = "" if self.tgi else "HEADRACE_"
        names = (self.name, *self.aliases)
        return tuple(prefix + name.replace("-", "_").upper() for name in names)

    @property
    def target(self) -> str:
        """Name of the field that it fills."""
        return self.field or self.key


@dataclass(frozen=True, kw_only=True)
class ForeignSetting:
    """A setting of TGI's launcher that headrace knows and does not honour.

    Attributes:
        why: Completes the warning or the refusal.
        harmless: Values (in lower case) that ask for nothing: accepted in silence.
        refused: Any other value ends the program; otherwise it is a warning.
        switch: The flag takes no value.
    """

    name: str
    why: str
    harmless: tuple[str, ...] = ()
    refused: bool = False
    switch: bool = False

    @property
    def flag(self) -> str:
        """As typed on a command line."""
        return f"--{self.name}"

    @property
    def key(self) -> str:
        """Its key in a settings file, and its name in Python."""
        return self.name.replace("-", "_")

    @property
    def variables(self) -> tuple[str, ...]:
        """Its environment variable."""
        return (self.key.upper(),)


@dataclass(frozen=True)
class Section:
    """Settings that ``--help`` and the reference show together."""

    title: str
    settings: tuple[Setting, ...]
