"""From raw values to what each part is handed; foreign settings are warned of or refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace.cli.settings.declaration import ForeignSetting, Part, Setting
from headrace.cli.settings.declared import SECTIONS
from headrace.cli.settings.foreign import FOREIGN
from headrace.cli.settings.sources import CONFIG_VARIABLE, Raw, Sources, read_file
from headrace.engine.settings import EngineSettings
from headrace.link.errors import ConfigurationError
from headrace.transport.settings import TransportSettings

DECLARED: tuple[Setting, ...] = tuple(s for section in SECTIONS for s in section.settings)
KEYS = frozenset({setting.key for setting in DECLARED} | {setting.key for setting in FOREIGN})
"""Every name that a settings file and a command line may use."""


@dataclass(frozen=True)
class Assembled:
    """The settings of one command, handed on part by part.

    Attributes:
        warnings: One line for each setting that was accepted without effect.
    """

    engine: EngineSettings
    transport: TransportSettings
    warnings: list[str] = field(default_factory=list)


def assemble(
    flags: Mapping[str, object], environment: Mapping[str, str], config: Path | None = None
) -> Assembled:
    """Settings from flags, then environment, then ``config`` (or the file that the environment
    names), then defaults.

    Raises:
        ConfigurationError: a value out of bounds, an unknown key, a setting not built yet.
    """
    if config is None and environment.get(CONFIG_VARIABLE):
        config = Path(environment[CONFIG_VARIABLE])
    file = {} if config is None else read_file(config, KEYS)
    sources = Sources(flags, environment, file, str(config))
    warnings = [line for setting in FOREIGN if (line := _judge(setting, sources.find(setting)))]
    values: dict[Part, dict[str, object]] = {part: {} for part in Part}
    for setting in DECLARED:
        raw = sources.find(setting)
        if raw is not None:
            values[setting.part][setting.target] = read_value(setting, raw)
    transport = msgspec.convert(values[Part.TRANSPORT], TransportSettings)
    values[Part.ENGINE]["json_output"] = transport.json_output
    return Assembled(
        engine=msgspec.convert(values[Part.ENGINE], EngineSettings),
        transport=transport,
        warnings=warnings,
    )


def read_value(setting: Setting, raw: Raw) -> object:
    """The value that ``raw`` stands for.

    Raises:
        ConfigurationError: it is out of bounds; names where it came from.
    """
    try:
        return setting.kind.read(raw.value)
    except ValueError:
        raise ConfigurationError(
            f"{raw.origin} must be {setting.kind.bound}, got {raw.value!r}"
        ) from None


def _judge(setting: ForeignSetting, raw: Raw | None) -> str | None:
    """The warning that a foreign setting deserves, if any."""
    if raw is None or str(raw.value).strip().lower() in setting.harmless:
        return None
    if setting.refused:
        raise ConfigurationError(f"{raw.origin} {raw.value!r}: {setting.why}")
    return f"{raw.origin} has no effect: {setting.why}"
