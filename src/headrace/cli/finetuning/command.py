"""A click command whose function receives ``FinetuneSettings``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from headrace.cli.finetuning.declared import SECTIONS
from headrace.cli.settings.assemble import read_value
from headrace.cli.settings.options import help_row, option_of
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
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                metavar="FILE",
                help=f"Settings in TOML, under the names of the flags. [env: {CONFIG_VARIABLE}]",
            ),
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
        keys = {setting.key for setting in SETTINGS}
        own = [
            record
            for parameter in self.get_params(ctx)
            if isinstance(parameter, click.Option)
            and parameter.name not in keys
            and (record := parameter.get_help_record(ctx))
        ]
        with formatter.section("Options"):
            formatter.write_dl(own)
        for section in SECTIONS:
            with formatter.section(section.title):
                formatter.write_dl([help_row(setting) for setting in section.settings])


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
