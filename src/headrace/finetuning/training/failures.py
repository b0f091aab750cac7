"""Why a run stopped before its end, in words for the user."""

from __future__ import annotations

import errno
from pathlib import Path

from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.link.errors import HeadraceError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_WORDS = ("No space left on device", "File too large", "Disk quota exceeded")


class TrainingStopped(HeadraceError):
    """The run cannot go on; the message says what happened and what was kept."""


def not_finite(what: str, step: int, store: CheckpointStore) -> TrainingStopped:
    """A loss, or a weight of the adapter, that is NaN or infinite."""
    return TrainingStopped(
        f"{what} is not a finite number at step {step}: the run stops; {kept(store)}; a smaller "
        "--learning-rate or --max-grad-norm may help"
    )


def not_written(error: BaseException, step: int, store: CheckpointStore) -> TrainingStopped:
    """A checkpoint, a log or what a finished run leaves cannot be written."""
    reason = "no space is left on the disk" if _is_full(error) else f"{error}".split("\n")[0]
    return TrainingStopped(
        f"cannot write to {store.path.parent} at step {step}: {reason}; {kept(store)}"
    )


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return True
    return any(words in str(error) for words in _NO_ROOM_WORDS)


def kept(store: CheckpointStore) -> str:
    """The last good checkpoint, in words."""
    step = store.latest()
    if step is None:
        return "no checkpoint had been written yet"
    return f"the last good checkpoint, of step {step}, is kept ({_short(store.of_step(step))})"


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])
