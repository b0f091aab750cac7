"""Linears on one input, with their LoRA branches: one forward and one backward for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from headrace.finetuning.fused.adapters import LoraBranch, common_dropout, stacked_down
from headrace.finetuning.fused.frozen_matrix import FrozenMatrix
from headrace.finetuning.fused.operations import RowOperations

Tensor = torch.Tensor


@dataclass(slots=True)
class LoraState:
    """What the backward of a projection needs of its adapters.

    Attributes:
        branches: The adapters that took part.
        down: [n, r, K] in the compute dtype.
        ups: [N_j, r_j] of each adapter in the compute dtype, times its scaling.
        projected: [T, n * r].
        seeds: [n] int32 of the dropout masks.
        dropout: Its probability.
    """

    branches: list[LoraBranch]
    down: Tensor
    ups: list[Tensor]
    projected: Tensor
    seeds: Tensor
    dropout: float

    def of_branch(self, tokens_by_rank: Tensor, index: int) -> Tensor:
        """[T, r_j]: an adapter's columns of a [T, n * r] tensor."""
        first = index * self.down.shape[1]
        return tokens_by_rank[:, first : first + self.ups[index].shape[1]]


class ProjectionGroup:
    """``y = x @ W.T`` of several linears at once, plus each one's LoRA.

    Args:
        matrix: Their frozen weights.
        branches: Their adapters, in the order of the linears.
        first_seed: Where the group's dropout seeds begin among those of its layer.
    """

    def __init__(self, matrix: FrozenMatrix, branches: list[LoraBranch], first_seed: int) -> None:
        self.matrix = matrix
        self.branches = branches
        self._seeds = slice(first_seed, first_seed + len(branches))
        bounds = [0]
        for size in matrix.sizes:
            bounds.append(bounds[-1] + size)
        self._columns = [slice(*pair) for pair in pairwise(bounds)]

    def active_branches(self) -> list[LoraBranch]:
        """Adapters that are switched on now."""
        return [branch for branch in self.branches if branch.active]

    def forward(
        self, x: Tensor, residual: Tensor | None, seeds: Tensor, operations: RowOperations
    ) -> tuple[Tensor, LoraState | None]:
        """``[T, N]`` and what the backward needs.

        Args:
            x: [T, K].
            residual: [T, N] to add, or ``None``.
            seeds: [seeds of the layer] int32.
        """
        out = self.matrix.forward(x, residual)
        branches = self.active_branches()
        if not branches:
            return out, None
        down = stacked_down(branches, x.dtype)
        ups = [(branch.up.detach() * branch.scaling).to(x.dtype) for branch in branches]
        dropout, mine = common_dropout(branches), seeds[self._seeds]
        state = LoraState(
            branches, down, ups, operations.down_project(x, down, mine, dropout), mine, dropout
        )
        for index, branch in enumerate(branches):
            columns = self._columns[branch.member]
            out[:, columns].addmm_(state.of_branch(state.projected, index), ups[index].t())
        return out, state

    def backward(
        self,
        grad: Tensor,
        x: Tensor | None,
        state: LoraState | None,
        needs_input: bool,
        operations: RowOperations,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of ``x`` and those of the adapters (down, up, down, up, …).

        Args:
            grad: [T, N].
            x: [T, K], the input; ``None`` only where ``state`` is.
            state: Of the forward.
            needs_input: Whether the input's gradient is wanted (else ``None`` is returned).
        """
        grad_x = self.matrix.backward(grad) if needs_input else None
        if state is None or x is None:
            return grad_x, []
        rank = state.down.shape[1]
        inner = torch.empty_like(state.projected)
        up_grads = []
        for index, branch in enumerate(state.branches):
            part = grad[:, self._columns[branch.member]]
            up = state.ups[index]
            target = state.of_branch(inner, index)
            if up.shape[1] < rank:
                inner[:, index * rank : (index + 1) * rank].zero_()
            torch.mm(part, up, out=target)
            product = part.t() @ state.of_branch(state.projected, index)
            up_grads.append(product.to(branch.up.dtype).mul_(branch.scaling))
        down_grads = operations.down_gradient(x, inner, state.seeds, state.dropout, rank)
        if grad_x is not None:
            operations.add_input_gradient(grad_x, inner, state.down, state.seeds, state.dropout)
        grads = []
        for index, branch in enumerate(state.branches):
            own = down_grads[index, : branch.down.shape[0]]
            grads += [own.to(branch.down.dtype), up_grads[index]]
        return grad_x, grads
