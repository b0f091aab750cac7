"""Plain torch reference of FP8 quantization, a scale a row."""

from __future__ import annotations

import torch

LARGEST = 448.0
SMALLEST_SCALE = 1e-12


def quantize_rows(
    x: torch.Tensor, column_factor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn [T, K] and float32 scales [T, 1] with ``x * factor ≈ quantized * scale``.

    Args:
        x: [T, K].
        column_factor: [K] float32, multiplied in first: so do one-a-row scales of a weight reach
            the inner dimension of a product with that weight.
    """
    wide = x.float() if column_factor is None else x.float() * column_factor
    scale = (wide.abs().amax(-1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
    return (wide * (1.0 / scale)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale
