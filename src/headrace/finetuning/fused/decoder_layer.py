"""A Llama decoder layer with frozen weights as one autograd function, backward written by hand.

Only adapters get gradients, so a product's backward is one product (with the weight, for the
input), and few activations are kept: rows before each norm, rotated queries, keys and values, the
attention's output, gate and up. With ``recompute`` only the layer's input and the attention's
output are kept; the backward computes the rest again, but neither attention nor the down
projection, whose results it does not need (selective recomputation, arXiv:2205.05198).
"""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headrace.finetuning.fused.attention import Attended, Attention
from headrace.finetuning.fused.operations import RowOperations
from headrace.finetuning.fused.projection import LoraState, ProjectionGroup

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Sizes and constants of a decoder layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The parts of one decoder layer, in the order in which they compute."""

    shape: LayerShape
    input_norm: nn.Module
    qkv: ProjectionGroup
    out: ProjectionGroup
    post_norm: nn.Module
    gate_up: ProjectionGroup
    down: ProjectionGroup

    @property
    def groups(self) -> tuple[ProjectionGroup, ...]:
        """Every projection group, from the layer's input upwards."""
        return (self.qkv, self.out, self.gate_up, self.down)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Active adapters' parameters (down, up, …), in the order of the gradients."""
        for group in self.groups:
            for branch in group.active_branches():
                yield branch.down
                yield branch.up


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all layers of one forward share.

    Attributes:
        attention: For this batch's shape and documents.
        cosine: [P, head_dim / 2] float32; token t takes row t % P.
        sine: The same.
        seeds: [layers, adapters of a layer] int32, of the dropout masks.
        operations: Of the device.
        recompute: Keep little and compute it again in the backward.
    """

    attention: Attention
    cosine: Tensor
    sine: Tensor
    seeds: Tensor
    operations: RowOperations
    recompute: bool


@dataclass(slots=True)
class _Kept:
    """Activations of the forward; those that ``recompute`` drops are ``None``."""

    attended: Attended
    adapters: list[LoraState | None]
    qkv: Tensor | None
    middle: Tensor | None
    gate_up: Tensor | None


def _weight(norm: nn.Module) -> Tensor:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


class _Layer:
    """The computation of one layer on one batch, in pieces that forward and backward share."""

    def __init__(self, plan: LayerPlan, batch: BatchContext, seeds: Tensor, rows: int) -> None:
        self._plan = plan
        self._batch = batch
        self._seeds = seeds
        self._rows = rows

    def _norm(self, x: Tensor, norm: nn.Module) -> Tensor:
        return self._batch.operations.rms_norm(x, _weight(norm), self._plan.shape.eps)

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = self._plan.shape
        split = qkv.view(self._rows, -1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        query, key, value = split.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=2)
        return query, key, value

    def project_qkv(self, x: Tensor) -> tuple[Tensor, LoraState | None]:
        """Normalised, projected, rotated: [T, heads + 2 * kv_heads, head_dim]."""
        plan, batch = self._plan, self._batch
        operations = batch.operations
        normal = self._norm(x, plan.input_norm)
        flat, state = plan.qkv.forward(normal, None, self._seeds, operations)
        shape = plan.shape
        qkv = flat.view(flat.shape[0], -1, shape.head_dim)
        operations.rotate(qkv, batch.cosine, batch.sine, shape.heads + shape.kv_heads)
        return qkv, state

    def attend(self, qkv: Tensor) -> Attended:
        return self._batch.attention.forward(*self._heads(qkv), self._plan.shape.scale)

    def project_out(self, attended: Tensor, x: Tensor) -> tuple[Tensor, LoraState | None]:
        flat = attended.reshape(x.shape[0], -1)
        return self._plan.out.forward(flat, x, self._seeds, self._batch.operations)

    def project_gate_up(self, middle: Tensor) -> tuple[Tensor, LoraState | None]:
        normal = self._norm(middle, self._plan.post_norm)
        return self._plan.gate_up.forward(normal, None, self._seeds, self._batch.operations)

    def project_down(self, gate_up: Tensor, middle: Tensor) -> tuple[Tensor, LoraState | None]:
        active = self._batch.operations.silu_mul(gate_up)
        return self._plan.down.forward(active, middle, self._seeds, self._batch.operations)

    def forward(self, x: Tensor) -> tuple[Tensor, _Kept]:
        """The layer's output [T, hidden] and what its backward needs."""
        qkv, qkv_state = self.project_qkv(x)
        attended = self.attend(qkv)
        middle, out_state = self.project_out(attended.out, x)
        gate_up, gate_up_state = self.project_gate_up(middle)
        result, down_state = self.project_down(gate_up, middle)
        adapters = [qkv_state, out_state, gate_up_state, down_state]
        if self._batch.recompute:
            return result, _Kept(attended, adapters, None, None, None)
        return result, _Kept(attended, adapters, qkv, middle, gate_up)

    def backward(
        self, grad: Tensor, x: Tensor, kept: _Kept, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of ``x`` [T, hidden] and those of the adapters."""
        plan, operations = self._plan, self._batch.operations
        shape = plan.shape
        qkv_state, out_state, gate_up_state, down_state = kept.adapters
        middle, gate_up = kept.middle, kept.gate_up
        if middle is None:
            middle, _ = self.project_out(kept.attended.out, x)
        if gate_up is None:
            gate_up, _ = self.project_gate_up(middle)
        below_down = needs_input or any((qkv_state, out_state, gate_up_state))
        below_gate_up = needs_input or any((qkv_state, out_state))
        below_out = needs_input or qkv_state is not None

        active = operations.silu_mul(gate_up) if down_state else None
        active_grad, down_grads = plan.down.backward(
            grad, active, down_state, below_down, operations
        )
        if active_grad is None:
            return None, down_grads
        gate_up_grad = operations.silu_mul_backward(active_grad, gate_up)
        del active, active_grad, gate_up
        kept.gate_up = None
        normal_grad, gate_up_grads = plan.gate_up.backward(
            gate_up_grad,
            self._norm(middle, plan.post_norm) if gate_up_state else None,
            gate_up_state,
            below_gate_up,
            operations,
        )
        del gate_up_grad
        if normal_grad is None:
            return None, gate_up_grads + down_grads
        middle_grad = operations.rms_norm_backward(
            normal_grad, middle, _weight(plan.post_norm), shape.eps, grad
        )
        attended_grad, out_grads = plan.out.backward(
            middle_grad,
            kept.attended.out.reshape(x.shape[0], -1),
            out_state,
            below_out,
            operations,
        )
        if attended_grad is None:
            return None, out_grads + gate_up_grads + down_grads
        qkv = self.project_qkv(x)[0] if kept.qkv is None else kept.qkv
        heads_grads = self._batch.attention.backward(
            attended_grad.view(kept.attended.out.shape),
            *self._heads(qkv),
            kept.attended,
            shape.scale,
        )
        qkv_grad = operations.unrotate_packed(*heads_grads, self._batch.cosine, self._batch.sine)
        normal_grad, qkv_grads = plan.qkv.backward(
            qkv_grad.flatten(1),
            self._norm(x, plan.input_norm) if qkv_state else None,
            qkv_state,
            needs_input,
            operations,
        )
        grads = qkv_grads + out_grads + gate_up_grads + down_grads
        if normal_grad is None:
            return None, grads
        x_grad = operations.rms_norm_backward(
            normal_grad, x, _weight(plan.input_norm), shape.eps, middle_grad
        )
        return x_grad, grads


class FusedDecoderLayer(torch.autograd.Function):
    """``apply(x, plan, batch, layer_index, *plan.parameters())``: x is [rows, S, hidden]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: LayerPlan, batch: BatchContext, index: int, *adapters: Tensor
    ) -> Tensor:
        """The layer's output, of the shape and dtype of ``x``."""
        layer = _Layer(plan, batch, batch.seeds[index], x.shape[0])
        with torch.autocast(x.device.type, enabled=False):
            out, kept = layer.forward(x.detach().flatten(0, 1))
        ctx.save_for_backward(x)
        ctx.layer, ctx.kept = layer, kept
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of ``x`` and of the adapters.

        Raises:
            RuntimeError: A second backward through the same forward.
        """
        (x,) = ctx.saved_tensors
        if ctx.kept is None:
            raise RuntimeError("a fused decoder layer's activations live for one backward only")
        kept, ctx.kept = ctx.kept, None
        with torch.autocast(x.device.type, enabled=False):
            x_grad, grads = ctx.layer.backward(
                grad.contiguous().flatten(0, 1), x.flatten(0, 1), kept, ctx.needs_input_grad[0]
            )
        return (None if x_grad is None else x_grad.view(x.shape), None, None, None, *grads)
