"""Cross-entropy of one row of logits in a program, which writes the gradient over the logits."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 8192


@triton.jit
def cross_entropy_kernel(logits, labels, losses, vocab_size, logits_stride, BLOCK: tl.constexpr):
    """Grid (rows,). The maximum and the sum of exponentials are kept a lane and joined once."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    source = logits + row * logits_stride
    lane = tl.arange(0, BLOCK)
    if label == -100:
        tl.store(losses + row, 0.0)
        for start in range(0, vocab_size, BLOCK):
            column = start + lane
            tl.store(source + column, tl.zeros((BLOCK,), tl.float32), mask=column < vocab_size)
    else:
        peak = tl.full((BLOCK,), -1e30, tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab_size, BLOCK):
            column = start + lane
            value = tl.load(source + column, mask=column < vocab_size, other=-1e30).to(tl.float32)
            higher = tl.maximum(peak, value)
            total = total * tl.exp(peak - higher) + tl.exp(value - higher)
            peak = higher
        highest = tl.max(peak, axis=0)
        normaliser = highest + tl.log(tl.sum(total * tl.exp(peak - highest), axis=0))
        target = tl.load(source + label).to(tl.float32)
        tl.store(losses + row, normaliser - target)
        tl.debug_barrier()
        for start in range(0, vocab_size, BLOCK):
            column = start + lane
            inside = column < vocab_size
            value = tl.load(source + column, mask=inside, other=0.0).to(tl.float32)
            grad = tl.exp(value - normaliser) - tl.where(column == label, 1.0, 0.0)
            tl.store(source + column, grad, mask=inside)


def cross_entropy_in_place(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``[T]`` float32 losses; see ``reference.cross_entropy_in_place``."""
    rows, vocab_size = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    cross_entropy_kernel[(rows,)](
        logits,
        labels,
        losses,
        vocab_size,
        logits.stride(0),
        BLOCK=min(_BLOCK, triton.next_power_of_2(vocab_size)),
        num_warps=16,
    )
    return losses
