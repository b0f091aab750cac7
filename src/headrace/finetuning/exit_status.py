"""How training processes end, as the shell sees it."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """``INTERRUPTED`` is the BSD ``EX_TEMPFAIL``: saved on a signal, ``--resume`` continues."""

    DONE = 0
    FAILED = 1
    REFUSED = 2
    INTERRUPTED = 75
