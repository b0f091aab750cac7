"""``headrace finetune``: low-rank adapters on a model, on this machine's devices."""

from __future__ import annotations

import sys

import click

from headrace.cli.finetuning.command import FinetuneCommand
from headrace.finetuning.settings import FinetuneSettings

_EPILOG = (
    "Every flag can also be an environment variable with HEADRACE_ in front (--batch-size is "
    "HEADRACE_BATCH_SIZE) or a key in the --config file. The exit status is 0 when the adapter is "
    "written, 2 when something was refused before the training, 1 when the training failed, 75 "
    "when a signal ended it after a checkpoint: --resume continues."
)


_FILE_WIDTH = 120


@click.command("finetune", cls=FinetuneCommand, epilog=_EPILOG)
def command(settings: FinetuneSettings) -> int:
    """Train a LoRA adapter for MODEL on DATA.

    MODEL is a directory in Hugging Face's format, a GGUF file or a hub id; without one the built-in
    model is trained. DATA is a JSONL or Parquet file, or a directory of them or of a saved data
    set: chats (messages), prompt and completion, or text.
    """
    from rich.console import Console

    from headrace.finetuning.start import finetune

    # The tables are no narrower in a file than on a wide terminal.
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    return int(finetune(settings, Console(emoji=False, width=width)))
