"""A group of commands, each in a file that is imported only when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Lists its commands without importing them: ``headrace --help`` stays fast.

    Args:
        package: Where a command ``a-name`` is the attribute ``command`` of the module ``a_name``.
        summaries: Name of each command to the line that the help shows.
    """

    def __init__(self, *args: Any, package: str, summaries: Mapping[str, str], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._package = package
        self._summaries = dict(summaries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the help."""
        return list(self._summaries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; ``None``: there is no such name."""
        if cmd_name not in self._summaries:
            return None
        command = import_module(f"{self._package}.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their lines."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._summaries.items()))
