"""The default of a setting, read from the settings of the part that holds it."""

from __future__ import annotations

from headrace.cli.settings.declaration import Part, Setting
from headrace.cli.settings.kinds import Size
from headrace.engine.settings import EngineSettings
from headrace.finetuning.settings import FinetuneSettings
from headrace.transport.settings import TransportSettings

_DEFAULTS = {
    Part.ENGINE: EngineSettings(),
    Part.TRANSPORT: TransportSettings(),
    Part.FINETUNE: FinetuneSettings(data=""),
}


def default_of(setting: Setting) -> object:
    """The value that the part takes when nobody gives one.

    Raises:
        AttributeError: the part has no such field.
    """
    value: object = getattr(_DEFAULTS[setting.part], setting.target)
    return value


def shown_default(setting: Setting) -> str:
    """The default for people."""
    value = default_of(setting)
    if setting.default_text:
        return setting.default_text
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(setting.kind, Size):
        return f"{value} bytes"
    return f"{value:g}" if isinstance(value, float) else str(value)
