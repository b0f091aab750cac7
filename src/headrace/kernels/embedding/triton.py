"""Embedding lookup: a slice of one token's row in a program."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs

_BLOCK = 1024


@triton.jit
def embed_kernel(
    token_ids,
    table,
    out,
    hidden,
    table_stride,
    out_stride,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens, slices of ``BLOCK`` columns)."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    row = tl.load(token_ids + token).to(tl.int64)
    value = tl.load(table + row * table_stride + column, mask=inside, other=0.0)
    tl.store(out + token.to(tl.int64) * out_stride + column, value, mask=inside)


def embed(
    token_ids: torch.Tensor, table: torch.Tensor, out: torch.Tensor, traits: GpuTraits
) -> None:
    """``out[T, hidden] = table[token_ids]``; see ``reference.embed``."""
    tokens, hidden = out.shape
    if tokens == 0:
        return
    embed_kernel[(tokens, triton.cdiv(hidden, _BLOCK))](
        token_ids,
        table,
        out,
        hidden,
        table.stride(0),
        out.stride(0),
        BLOCK=_BLOCK,
        num_warps=4,
        **traits.launch_options(),
    )
