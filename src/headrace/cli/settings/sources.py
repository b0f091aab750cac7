"""Where raw values come from, in order of precedence: flags, environment, settings file."""

from __future__ import annotations

import difflib
import socket
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.settings.declaration import ForeignSetting, Setting
from headrace.link.errors import ConfigurationError

CONFIG_VARIABLE = "HEADRACE_CONFIG"


@dataclass(frozen=True)
class Raw:
    """A value as it was written, and where (for messages)."""

    value: object
    origin: str


@dataclass(frozen=True)
class Sources:
    """The three places, already read.

    Attributes:
        flags: Key to what the command line gave; ``None`` and empty tuples mean absent.
        environment: The process's environment.
        file: Key to value of the settings file; empty without one.
        file_name: For messages.
    """

    flags: Mapping[str, object]
    environment: Mapping[str, str]
    file: Mapping[str, object]
    file_name: str = ""

    def find(self, setting: Setting | ForeignSetting) -> Raw | None:
        """The value of highest precedence, or ``None`` where nobody gave one."""
        return next(self._all(setting), None)

    def _all(self, setting: Setting | ForeignSetting) -> Iterator[Raw]:
        given = self.flags.get(setting.key)
        if given is not None and given != ():
            yield Raw(given, f"`{setting.flag}`")
        for variable in setting.variables:
            text = self.environment.get(variable, "")
            if text.strip() and not _is_machine_name(variable, text):
                yield Raw(text, f"`{variable}` in the environment")
        if setting.key in self.file:
            yield Raw(self.file[setting.key], f"`{setting.key}` in {self.file_name}")


def _is_machine_name(variable: str, text: str) -> bool:
    # Shells and containers export the machine's own name under TGI's variable for the address.
    return variable == "HOSTNAME" and text == socket.gethostname()


def read_file(path: Path, known: Collection[str]) -> dict[str, object]:
    """The top-level keys of a TOML settings file, dashes read as underscores.

    Raises:
        ConfigurationError: it cannot be read, is not TOML, or has a key that is not ``known``.
    """
    try:
        with path.open("rb") as stream:
            document = tomllib.load(stream)
    except OSError as error:
        raise ConfigurationError(f"settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {path} is not TOML: {error}") from None
    values = {key.replace("-", "_"): value for key, value in document.items()}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise ConfigurationError(f"settings file {path}: unknown key `{key}`{hint}")
    return values
