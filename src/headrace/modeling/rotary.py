"""Cosine and sine tables of rotary position embedding (arXiv:2104.09864) and its scalings."""

from __future__ import annotations

import math

import torch

from headrace.checkpoint.config import ModelConfig, RopeScaling


def cos_sin_table(config: ModelConfig, num_positions: int, device: torch.device) -> torch.Tensor:
    """Table [num_positions, head_dim] float32: head_dim / 2 cosines, then as many sines."""
    positions = torch.arange(num_positions, dtype=torch.float32, device=device)
    scaling = config.rope_scaling
    magnitude = 1.0
    if scaling is not None and scaling.kind == "dynamic":
        angles = _dynamic_angles(config, scaling, positions)
    else:
        frequencies, magnitude = _frequencies(config)
        angles = positions[:, None] * frequencies.to(device)
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude


def _frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Inverse frequencies [head_dim / 2] and the factor on cosines and sines."""
    plain = _inverse_frequencies(config.rope_theta, config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "factors":
        return plain / torch.tensor(scaling.frequency_factors), 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        magnitude = scaling.attention_factor
        if magnitude is None:
            magnitude = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
        return _yarn(plain, config, scaling), magnitude
    raise ValueError(f"rope scaling {scaling.kind!r} is not implemented")


def _inverse_frequencies(theta: float, head_dim: int) -> torch.Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / theta**exponents


def _dynamic_angles(
    config: ModelConfig, scaling: RopeScaling, positions: torch.Tensor
) -> torch.Tensor:
    """Dynamic NTK: the base grows with the length of the text.

    The row of a position beyond the original length uses the base of a text that ends there. That
    is what a text generated token by token sees in Transformers, it leaves short texts exact, and
    a cached key never depends on what follows it.
    """
    dim, original = config.head_dim, scaling.original_max_position
    lengths = (positions.double() + 1).clamp(min=original)
    growth = scaling.factor * lengths / original - (scaling.factor - 1)
    bases = config.rope_theta * growth ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim
    return (positions[:, None].double() / bases[:, None] ** exponents).float()


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: long wavelengths are divided by the factor, middle ones interpolated."""
    original, low, high = (
        scaling.original_max_position,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    wavelengths = 2 * math.pi / plain
    blend = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return blend * plain + (1 - blend) * plain / scaling.factor


def _yarn(plain: torch.Tensor, config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """YaRN (arXiv:2309.00071): low frequencies are interpolated, high ones kept, with a ramp."""
    dim = config.head_dim

    def dimension_of(rotations: float) -> float:
        turns = scaling.original_max_position / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(config.rope_theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dim - 1.0)
    if low == high:
        high += 0.001
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)
    interpolated = ramp.clamp(0, 1)
    return plain / scaling.factor * interpolated + plain * (1 - interpolated)
