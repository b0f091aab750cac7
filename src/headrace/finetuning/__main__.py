"""One training process: ``python -m headrace.finetuning DIRECTORY``; see ``launch``."""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from pathlib import Path

from headrace.finetuning.exit_status import ExitStatus
from headrace.finetuning.parent_death import follow_parent
from headrace.finetuning.run_directory import RunDirectory
from headrace.link.errors import ConfigurationError, HeadraceError


def main(directory: Path) -> ExitStatus:
    """Train; an error becomes one line, from the first process only."""
    follow_parent()
    # Four thousand modules: without looking among them for garbage they take a tenth less time.
    gc.disable()
    _quieten()
    from headrace.finetuning.training.run import run

    gc.freeze()
    gc.enable()
    try:
        return run(RunDirectory(directory))
    except HeadraceError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"headrace: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        refused = isinstance(error, ConfigurationError)
        return ExitStatus.REFUSED if refused else ExitStatus.FAILED


def _quieten() -> None:
    """The libraries' notices on their own use are not about the user's run."""
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries leave threads and process groups behind that would delay or spoil the exit.
    os._exit(status)
