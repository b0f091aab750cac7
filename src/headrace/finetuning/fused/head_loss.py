"""The language model head and its cross-entropy, a few thousand rows at a time.

Logits live for one piece only, in the compute dtype; the forward turns them into their gradient at
once and multiplies it with the frozen head, so that the backward is a scaling. The method is that
of Liger-Kernel's fused linear cross-entropy (arXiv:2410.10989), without its weight gradient and
with pieces large enough for a matrix product to run at full speed.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch

from headrace.finetuning.fused.operations import RowOperations, operations_for
from headrace.finetuning.fused.pieces import loss_piece_elements
from headrace.kernels.cross_entropy.reference import IGNORED

Tensor = torch.Tensor


class HeadLoss(torch.autograd.Function):
    """``apply(hidden, head, labels, divisor)``: the summed cross-entropy over ``divisor``."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, divisor: Tensor) -> Tensor:
        """A float32 scalar.

        Args:
            ctx: autograd's.
            hidden: [T, hidden], normalised.
            head: [vocab, hidden], frozen.
            labels: [T] int64, already shifted; ``IGNORED`` rows do not count.
            divisor: Scalar tensor.
        """
        operations = operations_for(hidden.device)
        weight = head.detach()
        with torch.autocast(hidden.device.type, enabled=False):
            total, grad = _sum_in_pieces(
                hidden.detach(), weight, labels, operations, ctx.needs_input_grad[0]
            )
        ctx.save_for_backward(grad, divisor)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        """The gradient of ``hidden``."""
        hidden_grad, divisor = ctx.saved_tensors
        return (hidden_grad * (grad / divisor).to(hidden_grad.dtype), None, None, None)


def _sum_in_pieces(
    hidden: Tensor, head: Tensor, labels: Tensor, operations: RowOperations, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    rows, vocab_size = hidden.shape[0], head.shape[0]
    elements = loss_piece_elements(on_gpu=hidden.device.type == "cuda")
    piece = max(1, min(rows, elements // vocab_size))
    grad = torch.empty_like(hidden) if needs_grad else None
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for first in range(0, rows, piece):
        part = slice(first, min(rows, first + piece))
        logits = hidden[part] @ head.t()
        total += operations.cross_entropy_in_place(logits, labels[part]).sum()
        if grad is not None:
            torch.mm(logits, head, out=grad[part])
    return total, grad


def head_loss(
    hidden: Tensor, head: Tensor, labels: Tensor, num_items: Tensor | int | None
) -> Tensor:
    """Next-token cross-entropy, as Transformers' ``ForCausalLMLoss`` computes it.

    Args:
        hidden: [rows, S, hidden], normalised.
        head: [vocab, hidden], frozen.
        labels: [rows, S] int64, not shifted; ``IGNORED`` does not count.
        num_items: Divides the sum; ``None``: the number of labels that count.
    """
    shifted = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].reshape(-1)
    if num_items is None:
        divisor = (shifted != IGNORED).sum().float()
    else:
        divisor = torch.as_tensor(num_items, device=hidden.device).float()
    loss: Tensor = HeadLoss.apply(hidden.flatten(0, 1), head, shifted, divisor)
    return loss
