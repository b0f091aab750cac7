"""The row operations of a training step on a device: Triton kernels on a GPU, else plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from headrace.kernels.activation import backward_reference as activation_backward
from headrace.kernels.activation import reference as activation
from headrace.kernels.cross_entropy import reference as cross_entropy
from headrace.kernels.lora import reference as lora
from headrace.kernels.norm import backward_reference as norm_backward
from headrace.kernels.norm import reference as norm
from headrace.kernels.rotary import training_reference as rotary

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class RowOperations:
    """Everything between the matrix products; the references name shapes and meaning.

    Attributes:
        rms_norm: ``(x, weight, eps) -> normalised``.
        rms_norm_backward: ``(grad, x, weight, eps, skip_grad | None) -> grad_x``.
        silu_mul: ``(gate_up) -> activations``.
        silu_mul_backward: ``(grad, gate_up) -> grad_gate_up``.
        rotate: ``(qkv, cosine, sine, heads)``, in place.
        unrotate_packed: ``(grad_query, grad_key, grad_value, cosine, sine) -> grad_qkv``.
        down_project: ``(x, down, seeds, dropout) -> [T, n * r]``.
        down_gradient: ``(x, grad, seeds, dropout, rank) -> [n, r, K]``.
        add_input_gradient: ``(grad_x, grad, down, seeds, dropout)``, in place.
        cross_entropy_in_place: ``(logits, labels) -> losses``.
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rms_norm_backward: Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
    silu_mul: Callable[[Tensor], Tensor]
    silu_mul_backward: Callable[[Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, int], None]
    unrotate_packed: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    down_project: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    down_gradient: Callable[[Tensor, Tensor, Tensor, float, int], Tensor]
    add_input_gradient: Callable[[Tensor, Tensor, Tensor, Tensor, float], None]
    cross_entropy_in_place: Callable[[Tensor, Tensor], Tensor]


def _torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    out = torch.empty_like(x)
    norm.rms_norm(x, weight, eps, out)
    return out


def _torch_silu_mul(gate_up: Tensor) -> Tensor:
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    activation.silu_mul(gate_up, out)
    return out


TORCH_OPERATIONS = RowOperations(
    rms_norm=_torch_rms_norm,
    rms_norm_backward=norm_backward.rms_norm_backward,
    silu_mul=_torch_silu_mul,
    silu_mul_backward=activation_backward.silu_mul_backward,
    rotate=rotary.rotate,
    unrotate_packed=rotary.unrotate_packed,
    down_project=lora.down_project,
    down_gradient=lora.down_gradient,
    add_input_gradient=lora.add_input_gradient,
    cross_entropy_in_place=cross_entropy.cross_entropy_in_place,
)


@cache
def _triton_operations(device: torch.device) -> RowOperations:
    from headrace.kernels.activation import triton as activation_kernels
    from headrace.kernels.activation import triton_backward as activation_backward_kernels
    from headrace.kernels.cross_entropy import triton as cross_entropy_kernels
    from headrace.kernels.lora import triton as lora_kernels
    from headrace.kernels.norm import triton as norm_kernels
    from headrace.kernels.norm import triton_backward as norm_backward_kernels
    from headrace.kernels.rotary import triton_training as rotary_kernels
    from headrace.kernels.triton_launch import GpuTraits

    traits = GpuTraits.of(device)

    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        norm_kernels.rms_norm(x, weight, eps, out, traits)
        return out

    def silu_mul(gate_up: Tensor) -> Tensor:
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        activation_kernels.silu_mul(gate_up, out, traits)
        return out

    return RowOperations(
        rms_norm=rms_norm,
        rms_norm_backward=norm_backward_kernels.rms_norm_backward,
        silu_mul=silu_mul,
        silu_mul_backward=activation_backward_kernels.silu_mul_backward,
        rotate=rotary_kernels.rotate,
        unrotate_packed=rotary_kernels.unrotate_packed,
        down_project=lora_kernels.down_project,
        down_gradient=lora_kernels.down_gradient,
        add_input_gradient=lora_kernels.add_input_gradient,
        cross_entropy_in_place=cross_entropy_kernels.cross_entropy_in_place,
    )


def operations_for(device: torch.device) -> RowOperations:
    """Triton's on a CUDA or ROCm device, plain torch's elsewhere."""
    return _triton_operations(device) if device.type == "cuda" else TORCH_OPERATIONS
