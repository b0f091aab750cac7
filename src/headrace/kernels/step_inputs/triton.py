"""One launch reads a step's inputs out of pinned memory and puts each where it belongs."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from headrace.kernels.step_inputs.layout import StepLayout
from headrace.kernels.triton_launch import GpuTraits, start_dependents, wait_for_inputs

_BLOCK = 512


@triton.jit(do_not_specialize=["num_tokens", "num_sequences", "num_changed"])
def publish_kernel(
    staged,
    step,
    block_tables,
    num_tokens,
    num_sequences,
    num_changed,
    max_tokens,
    row_capacity,
    changed_places,
    changed_blocks,
    TOKEN_FIELDS: tl.constexpr,
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``BLOCK`` entries, ``FIELDS`` and one for the block tables).

    ``staged`` is host memory that the device reads across the bus, so only what is used is read.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    field = tl.program_id(1)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if field < FIELDS:
        start = field * max_tokens
        count = num_tokens
        if field >= TOKEN_FIELDS:
            start = TOKEN_FIELDS * max_tokens + (field - TOKEN_FIELDS) * row_capacity
            count = num_sequences + 1
        inside = index < count
        value = tl.load(staged + start + index, mask=inside, other=0, cache_modifier=".cv")
        tl.store(step + start + index, value, mask=inside)
    else:
        inside = index < num_changed
        place = tl.load(staged + changed_places + index, mask=inside, other=0, cache_modifier=".cv")
        block = tl.load(staged + changed_blocks + index, mask=inside, other=0, cache_modifier=".cv")
        tl.store(block_tables + place, block, mask=inside)


def publish(
    staged: torch.Tensor,
    step: torch.Tensor,
    block_tables: torch.Tensor,
    layout: StepLayout,
    num_tokens: int,
    num_sequences: int,
    num_changed: int,
    traits: GpuTraits,
) -> None:
    """Queue it on the current stream; see ``reference.publish``.

    Args:
        staged: Pinned, not written again before the step is complete.
    """
    fields = layout.token_fields + layout.row_fields
    entries = max(num_tokens, num_sequences + 1, num_changed)
    publish_kernel[(triton.cdiv(entries, _BLOCK), fields + 1)](
        staged,
        step,
        block_tables,
        num_tokens,
        num_sequences,
        num_changed,
        layout.max_tokens,
        layout.row_capacity,
        layout.changed_places,
        layout.changed_blocks,
        TOKEN_FIELDS=layout.token_fields,
        FIELDS=fields,
        BLOCK=_BLOCK,
        num_warps=4,
        **traits.launch_options(),
    )
