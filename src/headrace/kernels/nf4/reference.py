"""Plain torch reference of the 4-bit normal float of QLoRA (arXiv:2305.14314, appendix E).

Two weights a byte, the first in the high nibble; blocks of ``BLOCK`` consecutive weights share
one float32 absolute maximum: the packing of bitsandbytes without nested quantization.
"""

from __future__ import annotations

import torch

BLOCK = 64
CODEBOOK = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed bytes [numel / 2] and absolute maxima [numel / BLOCK] float32.

    Args:
        weight: Any shape whose number of elements is a multiple of ``BLOCK``.
    """
    blocks = weight.reshape(-1, BLOCK).float()
    peaks = blocks.abs().amax(dim=1)
    normal = blocks / peaks.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codebook = torch.tensor(CODEBOOK, device=weight.device)
    borders = (codebook[1:] + codebook[:-1]) / 2
    codes = torch.bucketize(normal, borders).to(torch.uint8).reshape(-1, 2)
    return (codes[:, 0] << 4) | codes[:, 1], peaks


def dequantize(packed: torch.Tensor, peaks: torch.Tensor, out: torch.Tensor) -> None:
    """Write the weights into ``out``, contiguous and of the packed number of elements."""
    codebook = torch.tensor(CODEBOOK, device=packed.device)
    codes = torch.stack((packed >> 4, packed & 15), dim=1).reshape(-1, BLOCK)
    out.copy_((codebook[codes.long()] * peaks[:, None]).reshape(out.shape))
