"""Fused pieces that replace one module's forward each, where whole layers are not fused."""
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from headrace.finetuning.fused.adapters import base_linear, find_branch
from headrace.finetuning.fused.frozen_choice import frozen_matrix
from headrace.finetuning.fused.norm_function import FusedRMSNorm
from headrace.finetuning.fused.operations import operations_for
from headrace.finetuning.fused.projection import ProjectionGroup

Tensor = torch.Tensor


class FusedSiluMul(torch.autograd.Function):
    """``apply(gate, up)``: ``silu(gate) * up`` in one pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The activations, of the shape of ``gate``."""
        gate_up = torch.cat((gate.detach(), up.detach()), dim=-1).flatten(0, -2)
        ctx.save_for_backward(gate_up)
        return operations_for(gate.device).silu_mul(gate_up).view(gate.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of gate and up."""
        (gate_up,) = ctx.saved_tensors
        both = operations_for(grad.device).silu_mul_backward(
            grad.contiguous().flatten(0, -2), gate_up
        )
        gate, up = both.chunk(2, dim=-1)
        return gate.reshape(grad.shape), up.reshape(grad.shape)


class FusedRotary(torch.autograd.Function):
    """``apply(heads, cosine, sine)``: rotate queries and keys together in one pass."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """[T, heads, head_dim], a new tensor."""
        ctx.save_for_backward(cosine, sine)
        out = heads.detach().clone(memory_format=torch.contiguous_format)
        operations_for(heads.device).rotate(out, cosine, sine, heads.shape[1])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient turned back."""
        cosine, sine = ctx.saved_tensors
        out = grad.clone(memory_format=torch.contiguous_format)
        operations_for(grad.device).rotate(out, cosine, -sine, grad.shape[1])
        return out, None, None


class FusedLoraLinear(torch.autograd.Function):
    """``apply(x, group, seeds, down, up)``: a frozen linear and its adapter."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: ProjectionGroup, seeds: Tensor, *adapters: Tensor
    ) -> Tensor:
        """[..., N] of ``x`` [..., K]."""
        operations = operations_for(x.device)
        with torch.autocast(x.device.type, enabled=False):
            out, ctx.state = group.forward(x.detach().flatten(0, -2), None, seeds, operations)
        ctx.group = group
        ctx.save_for_backward(x)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients of ``x``, the down and the up matrix."""
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            grad_x, grads = ctx.group.backward(
                grad.contiguous().flatten(0, -2),
                x.flatten(0, -2),
                ctx.state,
                ctx.needs_input_grad[0],
                operations_for(x.device),
            )
        return (None if grad_x is None else grad_x.view(x.shape), None, None, *grads)


def fuse_norm(norm: nn.Module) -> None:
    """Replace the forward of an RMSNorm."""
    eps = norm.variance_epsilon

    def forward(hidden_states: Tensor) -> Tensor:
        result: Tensor = FusedRMSNorm.apply(hidden_states, norm.weight, eps)
        return result

    norm.forward = forward


def fuse_rotary(attention: Any) -> None:
    """Replace the forward of a decoder's self-attention."""
    head_dim = attention.head_dim

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        shape = (*hidden_states.shape[:-1], -1, head_dim)
        query = attention.q_proj(hidden_states).view(shape)
        key = attention.k_proj(hidden_states).view(shape)
        value = attention.v_proj(hidden_states).view(shape).transpose(1, 2)
        cosine, sine = (
            part[..., : head_dim // 2].float().flatten(0, 1).contiguous()
            for part in position_embeddings
        )
        both = FusedRotary.apply(torch.cat((query, key), dim=2).flatten(0, 1), cosine, sine)
        both = both.view(*hidden_states.shape[:-1], -1, head_dim).transpose(1, 2)
        query, key = both.split([query.shape[2], key.shape[2]], dim=1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            attention.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(
            attention,
            query,
            key,
            value,
            attention_mask,
            dropout=attention.attention_dropout if attention.training else 0.0,
            scaling=attention.scaling,
            **others,
        )
        return attention.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights

    attention.forward = forward


def fuse_swiglu(mlp: nn.Module) -> None:
    """Replace the forward of a gated feed-forward network."""

    def forward(x: Tensor) -> Tensor:
        gate, up = mlp.get_submodule("gate_proj")(x), mlp.get_submodule("up_proj")(x)
        result: Tensor = mlp.get_submodule("down_proj")(FusedSiluMul.apply(gate, up))
        return result

    mlp.forward = forward


def fuse_lora_linear(layer: nn.Module, name: str) -> None:
    """Replace the forward of PEFT's LoRA layer around a linear."""
    branch = find_branch(layer, 0, name)
    if branch is None:
        return
    matrix = frozen_matrix([base_linear(layer)], merge=False)
    group = ProjectionGroup(matrix, [branch], 0)

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        seeds = torch.randint(2**31 - 1, (1,), dtype=torch.int32, device=x.device)
        parameters = (branch.down, branch.up) if branch.active else ()
        result: Tensor = FusedLoraLinear.apply(x, group, seeds, *parameters)
        return result

    layer.forward = forward
