"""Checkpoints on disk: written aside, renamed when complete, old ones removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

_PREFIX = "checkpoint-"


class CheckpointStore:
    """The directory of a run's checkpoints.

    What is called ``checkpoint-N`` there is complete: it got that name by one rename, after all of
    its files had reached the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unfinished = path / ".unfinished"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.path.is_dir():
            return []
        suffixes = [
            child.name.removeprefix(_PREFIX)
            for child in self.path.iterdir()
            if child.name.startswith(_PREFIX)
        ]
        return sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def of_step(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.path / f"{_PREFIX}{step}"

    def begin(self) -> None:
        """Make room for a checkpoint below ``unfinished``."""
        self.discard()
        self.unfinished.mkdir(parents=True)

    def commit(self, step: int) -> None:
        """Give the checkpoint that was written below ``unfinished`` its name.

        Raises:
            OSError: its files cannot be brought to the disk.
        """
        written = self.unfinished / f"{_PREFIX}{step}"
        for directory, _, names in os.walk(written):
            for name in names:
                _to_disk(Path(directory) / name)
            _to_disk(Path(directory))
        written.replace(self.of_step(step))
        _to_disk(self.path)
        self.discard()

    def discard(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def prune(self, keep: int, protected: Collection[int]) -> None:
        """Remove all but the ``keep`` newest checkpoints and the ``protected`` steps."""
        for step in self.steps()[:-keep]:
            if step not in protected:
                shutil.rmtree(self.of_step(step), ignore_errors=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
