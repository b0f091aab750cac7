"""Linears in plain torch: oneDNN's own weight layout where there is one, else ``torch.mm``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_PACKED_ROWS_HINT = 16
"""Rows of x that oneDNN is told to expect when it chooses a layout; all batches then use it."""


@dataclass(frozen=True, slots=True)
class TorchLinear:
    """A dense matrix [N, K].

    Attributes:
        weight: Its rows, or an opaque tensor in oneDNN's blocked layout if ``packed``.
        bias: [N] or none.
        packed: oneDNN's layout makes a step of few rows on a CPU about twice as fast.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    out_features: int
    in_features: int
    num_bytes: int
    packed: bool

    @classmethod
    def make(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> TorchLinear:
        """Lay out a matrix in the fastest way that this build of torch has."""
        packed = _can_pack(weight)
        rows, columns = weight.shape
        layout = (
            torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_ROWS_HINT) if packed else weight
        )
        return cls(layout, bias, rows, columns, weight.nbytes, packed)

    def compute(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """``out = x @ weight.T + bias``."""
        if self.packed:
            pointwise = torch.ops.mkldnn._linear_pointwise
            out.copy_(pointwise(x, self.weight, self.bias, "none", [], ""))
        elif out.dtype != x.dtype:
            out.copy_(torch.nn.functional.linear(x, self.weight, self.bias))
        elif self.bias is None:
            torch.mm(x, self.weight.T, out=out)
        else:
            torch.addmm(self.bias, x, self.weight.T, out=out)


def _can_pack(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
