"""Forward and backward of small steps as one CUDA graph: one launch instead of a thousand.

A captured step computes the loss and the adapters' gradients together; the backward that the
caller asks for later only scales those gradients. Rows must have a fixed shape.
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch

from headrace.finetuning.fused.adapters import LoraBranch, aliased, parameters_of

Tensor = torch.Tensor
LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``(input_ids, labels, num_items | None) -> loss``, with gradients for the adapters."""

_EAGER_STEPS = 2
_MOST_GRAPHS = 16


class _ReplayedStep(torch.autograd.Function):
    """``apply(graph, *parameters)``: the replayed loss, its gradients ready."""

    @staticmethod
    def forward(ctx: Any, step: CapturedStep, *_: Tensor) -> Tensor:
        ctx.step = step
        return step.loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *torch._foreach_mul(ctx.step.grads, grad))


class CapturedStep:
    """One shape's loss and gradients over buffers that stay in place.

    Args:
        compute: The loss, eagerly.
        branches: Whose parameters get gradients.
        ids: [rows, S], of the shape to capture.
        labels: The same shape.
        num_items: Scalar tensor or ``None``.
        pool: Memory that captured steps share: no two of them live at a time.
    """

    def __init__(
        self,
        compute: LossFunction,
        branches: list[LoraBranch],
        ids: Tensor,
        labels: Tensor,
        num_items: Tensor | None,
        pool: Any,
    ) -> None:
        self._parameters = parameters_of(branches)
        self._ids, self._labels = ids.clone(), labels.clone()
        self._num_items = None if num_items is None else num_items.clone()
        self._graph = torch.cuda.CUDAGraph()
        with aliased(branches) as leaves, torch.cuda.graph(self._graph, pool=pool):
            loss = compute(self._ids, self._labels, self._num_items)
            grads = torch.autograd.grad(loss, leaves)
        self.loss, self.grads = loss.detach(), list(grads)

    def __call__(self, ids: Tensor, labels: Tensor, num_items: Tensor | None) -> Tensor:
        """The loss of other rows; differentiable once, before the next call."""
        self._ids.copy_(ids)
        self._labels.copy_(labels)
        if self._num_items is not None and num_items is not None:
            self._num_items.copy_(num_items)
        self._graph.replay()
        loss: Tensor = _ReplayedStep.apply(self, *self._parameters)
        return loss


class StepGraphs:
    """Captures shapes that come again and again; everything else is computed eagerly.

    Args:
        compute: The loss, eagerly.
        most_tokens: Of a step that is captured: larger ones keep the device busy anyway.
    """

    def __init__(self, compute: LossFunction, most_tokens: int) -> None:
        self._compute = compute
        self._most_tokens = most_tokens
        self._state: Hashable = None
        self._seen: Counter[Hashable] = Counter()
        self._steps: dict[Hashable, CapturedStep] = {}
        self._pool: Any = None

    def loss(
        self,
        branches: list[LoraBranch],
        state: Hashable,
        ids: Tensor,
        labels: Tensor,
        num_items: Tensor | None,
    ) -> Tensor:
        """The loss, replayed where this shape has been captured.

        Args:
            branches: What is trained; empty: nothing is.
            state: Everything else that a captured step depends on; another one drops all graphs.
            ids: [rows, S].
            labels: [rows, S].
            num_items: Scalar tensor or ``None``.
        """
        wanted = ids.device.type == "cuda" and ids.numel() <= self._most_tokens
        if not wanted or not branches or not torch.is_grad_enabled():
            return self._compute(ids, labels, num_items)
        if state != self._state:
            self._steps.clear()
            self._seen.clear()
            self._state = state
            self._pool = torch.cuda.graph_pool_handle()
        shape = (*ids.shape, num_items is None)
        step = self._steps.get(shape)
        if step is None:
            self._seen[shape] += 1
            if self._seen[shape] <= _EAGER_STEPS or len(self._steps) == _MOST_GRAPHS:
                return self._compute(ids, labels, num_items)
            step = CapturedStep(self._compute, branches, ids, labels, num_items, self._pool)
            self._steps[shape] = step
        return step(ids, labels, num_items)
