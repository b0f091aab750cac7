"""The adapter that a finished run leaves, as PEFT loads it."""

from __future__ import annotations

import shutil
from pathlib import Path


def copy_adapter(checkpoint: Path, target: Path) -> None:
    """Put a checkpoint's adapter into ``target``, each file whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(checkpoint.iterdir()):
        if source.name.startswith("adapter_") and source.is_file():
            unfinished = target / f".{source.name}.part"
            shutil.copyfile(source, unfinished)
            unfinished.replace(target / source.name)
