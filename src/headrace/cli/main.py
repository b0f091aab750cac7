"""The command ``headrace``: finds the subcommand and turns errors into one line."""

from __future__ import annotations

import sys

import click

import headrace
from headrace.cli.lazy_group import LazyGroup
from headrace.link.errors import ConfigurationError, HeadraceError

EXIT_FAILED = 1
EXIT_USAGE = 2

_COMMANDS = {
    "serve": "Serve a model over HTTP, with TGI's and OpenAI's routes.",
    "chat": "Chat with a model in the terminal.",
    "finetune": "Train a LoRA adapter on your data; serve it with serve --lora-adapters.",
    "bench": "Measure latency, serving, fine-tuning and kernels; compare recorded runs.",
    "fit": "Say whether a model fits a device, for serving and for LoRA training.",
    "tune-gemm": "Choose a model's GEMM kernels on this GPU ahead of time.",
    "doctor": "Say what this machine is and which backends work on it.",
}


@click.group(
    cls=LazyGroup,
    package="headrace.cli",
    summaries=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(headrace.__version__, prog_name="headrace")
def cli() -> None:
    """Serve open large language models on the machine in front of you."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage or settings."""
    try:
        status = cli.main(arguments, prog_name="headrace", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as request:
        request.show()
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _complain(error.format_message())
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except HeadraceError as error:
        _complain(str(error))
        sys.exit(EXIT_USAGE if isinstance(error, ConfigurationError) else EXIT_FAILED)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> None:
    line = " ".join(message.split())
    click.echo(f"headrace: {line}", err=True)
