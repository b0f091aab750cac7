"""The most likely token of each row of logits, one launch: slices of a row in several programs."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs

_BLOCK = 2048
_MOST_SLICES = 64
_FEW_ROWS = 32


@triton.jit
def most_likely_kernel(
    logits,
    token_ids,
    finite,
    rows,
    last_tokens,
    partial_peaks,
    partial_ids,
    tickets,
    vocab_size,
    slice_size,
    logits_stride,
    SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows, ``SLICES``); not a number counts as infinity, so that it is never passed over.

    The last slices first: of many rows of logits what was written last is still in the L2 cache.

    Args:
        rows: [R] int32, whose logits they are.
        last_tokens: [rows] int32, by row: where the next step reads its token.
        partial_peaks: [rows, SLICES] float32.
        partial_ids: [rows, SLICES] int32.
        tickets: [rows] int32 zeros; left at zero.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    row = tl.program_id(0)
    piece = SLICES - 1 - tl.program_id(1)
    first = piece * slice_size
    last = tl.minimum(first + slice_size, vocab_size)
    column = tl.arange(0, BLOCK)
    peaks = tl.full([BLOCK], float("-inf"), tl.float32)
    ids = tl.full([BLOCK], 2147483647, tl.int32)
    source = logits + row.to(tl.int64) * logits_stride
    for start in range(first, last, BLOCK):
        index = start + column
        value = tl.load(source + index, mask=index < last, other=float("-inf")).to(tl.float32)
        value = tl.where(value != value, float("inf"), value)
        better = (value > peaks) | ((ids == 2147483647) & (index < last))
        peaks = tl.where(better, value, peaks)
        ids = tl.where(better, index, ids)
    peak = tl.max(peaks, axis=0)
    token = tl.min(tl.where(peaks == peak, ids, 2147483647), axis=0)
    if SLICES > 1:
        slot = row * SLICES + piece
        tl.store(partial_peaks + slot, peak)
        tl.store(partial_ids + slot, token)
        tl.debug_barrier()
        if tl.atomic_add(tickets + row, 1, sem="acq_rel") == SLICES - 1:
            tl.store(tickets + row, 0)
            each = row * SLICES + tl.arange(0, SLICES)
            all_peaks = tl.load(partial_peaks + each, cache_modifier=".cg")
            all_ids = tl.load(partial_ids + each, cache_modifier=".cg")
            peak = tl.max(all_peaks, axis=0)
            token = tl.min(tl.where(all_peaks == peak, all_ids, 2147483647), axis=0)
            tl.store(token_ids + row, token.to(tl.int64))
            tl.store(last_tokens + tl.load(rows + row), token)
            tl.store(finite + row, (peak < float("inf")) & (peak > float("-inf")))
    else:
        tl.store(token_ids + row, token.to(tl.int64))
        tl.store(last_tokens + tl.load(rows + row), token)
        tl.store(finite + row, (peak < float("inf")) & (peak > float("-inf")))


class MostLikely:
    """Finds most likely tokens on one device.

    Args:
        max_rows: Most rows of logits at once.

    Attributes:
        token_ids: [max_rows] int64, the first of equals.
        finite: [max_rows] bool: the largest logit is; NaN anywhere in a row makes it not finite.
    """

    def __init__(self, max_rows: int, device: torch.device, traits: GpuTraits) -> None:
        self._traits = traits
        self.token_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self.finite = torch.zeros(max_rows, dtype=torch.bool, device=device)
        self._peaks = torch.empty(max_rows, _MOST_SLICES, dtype=torch.float32, device=device)
        self._ids = torch.empty(max_rows, _MOST_SLICES, dtype=torch.int32, device=device)
        self._tickets = torch.zeros(max_rows, dtype=torch.int32, device=device)

    def find(self, logits: torch.Tensor, rows: torch.Tensor, last_tokens: torch.Tensor) -> None:
        """Fill the first R of ``token_ids`` and ``finite``.

        Args:
            logits: [R, vocab].
            rows: [R] int32.
            last_tokens: [max_rows] int32; those of ``rows`` are set.
        """
        count, vocab_size = logits.shape
        # Two variants and no more: a warm-up that runs one row and all of them has compiled both.
        slices = _MOST_SLICES if count <= _FEW_ROWS else _MOST_SLICES // 8
        most_likely_kernel[(count, slices)](
            logits,
            self.token_ids,
            self.finite,
            rows,
            last_tokens,
            self._peaks,
            self._ids,
            self._tickets,
            vocab_size,
            triton.cdiv(triton.cdiv(vocab_size, slices), 16) * 16,
            logits.stride(0),
            SLICES=slices,
            BLOCK=_BLOCK,
            num_warps=4,
            **self._traits.launch_options(),
        )
