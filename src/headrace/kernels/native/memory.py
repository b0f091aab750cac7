"""Memory for what a step streams: on huge pages where the system grants them.

Pages of keys and values lie apart, so that with small pages nearly every one costs a walk of the
page tables.
"""

from __future__ import annotations

import math
import mmap

import torch


def huge_page_zeros(count: int, dtype: torch.dtype) -> torch.Tensor:
    """[count] zeros of ``dtype`` that take physical memory only when touched."""
    if count == 0:
        return torch.zeros(0, dtype=dtype)
    size = math.ceil(count * dtype.itemsize / mmap.PAGESIZE) * mmap.PAGESIZE
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        try:
            mapping.madvise(advice)
        except OSError:
            pass  # A kernel without transparent huge pages: small ones work as well.
    return torch.frombuffer(mapping, dtype=dtype, count=count)
