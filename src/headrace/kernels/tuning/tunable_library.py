"""torch's TunableOp, which on ROCm tries every solution of hipBLASLt and rocBLAS for a product.

On NVIDIA it knows nothing beside the default: ``linear/cublaslt.py`` does the same there. It tunes
a product when it first meets it, and keeps a file of its own, with its own validators.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def offered() -> bool:
    """Whether this build of torch has solutions to choose from."""
    return torch.version.hip is not None


@contextmanager
def tuning(path: Path | None) -> Iterator[None]:
    """Tune the library's products that are computed inside; afterwards choices stand.

    Args:
        path: Where torch writes them, replaced if it exists; ``None``: nowhere.
    """
    if not offered():
        yield
        return
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    torch.cuda.tunable.set_filename(os.devnull if path is None else str(path))
    torch.cuda.tunable.enable(True)
    torch.cuda.tunable.tuning_enable(True)
    try:
        yield
    finally:
        torch.cuda.tunable.tuning_enable(False)


def read(path: Path) -> bool:
    """Take the choices in ``path``; false where torch refuses the file or there is none."""
    if not offered():
        return True
    torch.cuda.tunable.set_filename(str(path))
    torch.cuda.tunable.enable(True)
    torch.cuda.tunable.tuning_enable(False)
    return path.is_file() and bool(torch.cuda.tunable.read_file(str(path)))
