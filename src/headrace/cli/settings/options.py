"""The declared settings as options of a click command, and its ``--help`` in sections."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import click

from headrace.cli.settings.assemble import assemble
from headrace.cli.settings.declaration import Section, Setting
from headrace.cli.settings.defaults import default_of, shown_default
from headrace.cli.settings.foreign import FOREIGN, NOT_BUILT, WITHOUT_MEANING
from headrace.cli.settings.kinds import Listing, NamedAdapters, Switch
from headrace.cli.settings.sources import CONFIG_VARIABLE
from headrace.link.errors import ConfigurationError

_WIDTH = 96


class SettingsCommand(click.Command):
    """A command with an option for each setting of ``sections``, and a ``--help`` that groups them.

    Its function receives ``MODEL`` and the settings as one ``Assembled`` named ``settings``.
    """

    def __init__(self, *args: Any, sections: tuple[Section, ...], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._settings = tuple(setting for section in sections for setting in section.settings)
        self.params = [
            click.Argument(["model"], required=False),
            *(option_of(setting) for setting in self._settings),
            *self.params,
            config_option(),
            *(
                click.Option([s.flag, s.key], is_flag=s.switch, default=None, hidden=True)
                for s in FOREIGN
            ),
        ]
        self.context_settings.setdefault("max_content_width", _WIDTH)

    def invoke(self, ctx: click.Context) -> Any:
        """Replace the raw values by the assembled settings and run the command.

        Raises:
            ConfigurationError: a setting cannot be used.
        """
        keys = [setting.key for setting in self._settings] + [setting.key for setting in FOREIGN]
        flags = {key: ctx.params.pop(key) for key in keys}
        _join_model(flags, ctx.params.pop("model"))
        settings = assemble(flags, os.environ, ctx.params.pop("config"))
        for warning in settings.warnings:
            click.echo(f"headrace: warning: {warning}", err=True)
        ctx.params["settings"] = settings
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings in their sections, the command's own options, and TGI's others."""
        write_sections(self, ctx, formatter, self._sections)
        with formatter.section("TGI's other flags"):
            for title, foreign in (
                ("Accepted with a warning", WITHOUT_MEANING),
                ("Refused until they are built", NOT_BUILT),
            ):
                names = ", ".join(setting.name for setting in foreign)
                # click's own wrapping would break the names at their dashes.
                indent = " " * formatter.current_indent
                text = textwrap.fill(
                    f"{title}: {names}.",
                    formatter.width,
                    initial_indent=indent,
                    subsequent_indent=indent,
                    break_on_hyphens=False,
                )
                formatter.write(f"{text}\n")


def write_sections(
    command: click.Command,
    ctx: click.Context,
    formatter: click.HelpFormatter,
    sections: tuple[Section, ...],
) -> None:
    """Write the options of ``command`` that are no settings, then the settings by section."""
    keys = {setting.key for section in sections for setting in section.settings}
    own = [
        record
        for parameter in command.get_params(ctx)
        if isinstance(parameter, click.Option)
        and parameter.name not in keys
        and (record := parameter.get_help_record(ctx))
    ]
    with formatter.section("Options"):
        formatter.write_dl(own)
    for section in sections:
        with formatter.section(section.title):
            formatter.write_dl([help_row(setting) for setting in section.settings])


def config_option() -> click.Option:
    """``--config FILE``."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help=f"Settings in TOML, under the names of the flags. [env: {CONFIG_VARIABLE}]",
    )


def _join_model(flags: dict[str, object], model: str | None) -> None:
    named = flags["model_id"]
    if model is not None and named is not None and model != named:
        raise ConfigurationError(f"two models given: {model!r} and --model-id {named!r}")
    flags["model_id"] = named if model is None else model


def option_of(setting: Setting) -> click.Option:
    """The click option of a setting: raw text, so that all sources are read alike."""
    names = [setting.flag, *(f"--{alias}" for alias in setting.aliases)]
    if isinstance(setting.kind, Switch):
        names = [f"{setting.flag}/--no-{setting.name}"]
        return click.Option([*names, setting.key], default=None)
    names += [f"-{letter}" for letter in setting.letter]
    return click.Option(
        [*names, setting.key],
        type=str,
        multiple=isinstance(setting.kind, Listing | NamedAdapters),
        default=None,
        metavar=setting.kind.metavar,
    )


def help_row(setting: Setting) -> tuple[str, str]:
    """A setting's line in ``--help``: how it is written, and what it means with its default."""
    left = f"-{setting.letter}, {setting.flag}" if setting.letter else setting.flag
    if isinstance(setting.kind, Switch) and default_of(setting):
        left = f"--no-{setting.name}"
    return f"{left} {setting.kind.metavar}".rstrip(), f"{setting.help} [{shown_default(setting)}]"
