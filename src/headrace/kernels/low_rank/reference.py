"""Plain torch reference of low-rank updates chosen token by token."""

from __future__ import annotations

import torch

from headrace.kernels.low_rank.stack import LowRankStack


def add_low_rank(
    x: torch.Tensor, stack: LowRankStack, adapter_of_token: torch.Tensor, out: torch.Tensor
) -> None:
    """``out[t] += scale * up @ (down @ x[t])`` of the adapter of token t, in float32.

    Args:
        x: [T, K].
        adapter_of_token: [T] int32; -1: the token has none and its row of ``out`` stays as it is.
        out: [T, sum of widths]; updated.
    """
    for adapter in sorted(set(adapter_of_token.tolist())):
        if adapter < 0:
            continue
        tokens = (adapter_of_token == adapter).nonzero()[:, 0]
        rows = x[tokens].float()
        column = 0
        for (first, rank, element), scale, width in zip(
            stack.pieces[adapter].tolist(),
            stack.scales[adapter].tolist(),
            stack.widths,
            strict=True,
        ):
            columns = slice(column, column + width)
            column += width
            if rank == 0:
                continue
            narrow = rows @ stack.down[first : first + rank].float().T
            up = stack.up[element : element + rank * width].view(rank, width).float()
            delta = (narrow * scale) @ up
            out[tokens, columns] = (out[tokens, columns].float() + delta).to(out.dtype)
