"""``headrace chat``: talk to a model in the terminal, in an engine of its own or on a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import msgspec

from headrace.cli.settings.assemble import Assembled
from headrace.cli.settings.declared import BATCHING, DEVICE, MODEL
from headrace.cli.settings.options import SettingsCommand

if TYPE_CHECKING:
    from headrace.cli.conversation.partner import Partner

# The engine's progress is not part of a conversation, and its end is told by an error.
_LOG_LEVEL = "critical"


@click.command("chat", cls=SettingsCommand, sections=(MODEL, DEVICE, BATCHING))
@click.option("--url", metavar="URL", help="Talk to a running server instead of an own engine.")
@click.option("--api-key", metavar="KEY", envvar="API_KEY", help="Key for that server.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer. [what fits]")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    default=0.7,
    help="0 takes the most likely token. [0.7]",
)
@click.option("--seed", type=click.IntRange(min=0), help="Repeat an answer. [a fresh one]")
def command(
    settings: Assembled,
    url: str | None,
    api_key: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
) -> int:
    """Chat with MODEL in the terminal.

    MODEL is a directory, a GGUF file or a hub id; without one the built-in model answers. Each
    line of a pipe is one turn, and only answers are printed.
    """
    from headrace.cli.conversation.partner import AnswerStyle
    from headrace.cli.conversation.terminal import TerminalChat

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    partner = _remote(url, api_key) if url else _local(settings)
    try:
        style = AnswerStyle(max_tokens=max_tokens, temperature=temperature, seed=seed)
        return TerminalChat(partner, style, system, interactive=interactive).run()
    finally:
        partner.close()


def _remote(url: str, api_key: str | None) -> Partner:
    from headrace.cli.conversation.remote import RemotePartner

    return RemotePartner(url, api_key)


def _local(settings: Assembled) -> Partner:
    from rich.console import Console

    from headrace.checkpoint.resolve import resolve
    from headrace.cli.conversation.local import LocalPartner
    from headrace.engine.log_setup import configure_logging

    checkpoint = resolve(settings.engine.model, settings.engine.revision)
    configure_logging(json_output=False, level=_LOG_LEVEL)
    quiet = msgspec.structs.replace(settings.engine, log_level=_LOG_LEVEL)
    with Console(stderr=True).status(f"starting {checkpoint.model_id}"):
        return LocalPartner(checkpoint, quiet)
