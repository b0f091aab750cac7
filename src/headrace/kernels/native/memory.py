"""Memory for what a step streams: on huge pages where the system grants them.

Pages of keys and values lie apart, so that with small pages nearly every one costs a walk of the
page tables.
"""

from __future__ import annotations

import contextlib
import ctypes
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
        # A kernel without transparent huge pages refuses: small ones work as well.
        with contextlib.suppress(OSError):
            mapping.madvise(advice)
    return torch.frombuffer(mapping, dtype=dtype, count=count)


_HUGE_PAGE = 1 << 21
_MADV_COLLAPSE = 25  # Linux 6.1; the mmap module does not name it yet.


def gather_into_huge_pages(tensor: torch.Tensor) -> bool:
    """Ask the system to move what ``tensor`` holds onto huge pages; whether it did, all of it.

    For buffers that somebody else has allocated. Contents and addresses stay as they are.
    """
    first = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    last = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if last <= first:
        return False
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return False
    size = ctypes.c_size_t(last - first)
    return bool(madvise(ctypes.c_void_p(first), size, _MADV_COLLAPSE) == 0)
