"""A click command whose function receives ``FinetuneSettings``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from headrace.cli.finetuning.declared import SECTIONS
from headrace.cli.settings.assemble import read_value
from headrace.cli.settings.options import config_option, option_of, write_sections
from headrace.cli.settings.sources import CONFIG_VARIABLE, Sources, read_file
from headrace.finetuning.settings import FinetuneSettings
from headrace.link.errors import ConfigurationError

_WIDTH = 96
SETTINGS = tuple(setting for section in SECTIONS for setting in section.settings)


class FinetuneCommand(click.Command):
    """``[MODEL] DATA`` and an option for each setting."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [
            click.Argument(["model_and_data"], nargs=-1, metavar="[MODEL] DATA"),
            *(option_of(setting) for setting in SETTINGS),
            config_option(),
        ]
        self.context_settings.setdefault("max_content_width", _WIDTH)

    def invoke(self, ctx: click.Context) -> Any:
        """Replace the raw values by the settings and run the command.

        Raises:
            ConfigurationError: a setting cannot be used.
        """
        model, data = _model_and_data(ctx.params.pop("model_and_data"))
        config = ctx.params.pop("config")
        flags = {setting.key: ctx.params.pop(setting.key) for setting in SETTINGS}
        values = _read_all(flags, config)
        settings = msgspec.convert({**values, "model": model, "data": data}, FinetuneSettings)
        ctx.params["settings"] = settings
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings in their sections."""
        write_sections(self, ctx, formatter, SECTIONS)


def _model_and_data(arguments: tuple[str, ...]) -> tuple[str | None, str]:
    if len(arguments) == 1:
        return None, arguments[0]
    if len(arguments) == 2:
        return arguments[0], arguments[1]
    raise ConfigurationError(
        "expected MODEL and DATA, or DATA alone for the built-in model; "
        f"got {len(arguments)} arguments"
    )


def _read_all(flags: dict[str, object], config: Path | None) -> dict[str, object]:
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    file = {} if config is None else read_file(config, {setting.key for setting in SETTINGS})
    sources = Sources(flags, os.environ, file, str(config))
    return {
        setting.target: read_value(setting, raw)
        for setting in SETTINGS
        if (raw := sources.find(setting)) is not None
    }
