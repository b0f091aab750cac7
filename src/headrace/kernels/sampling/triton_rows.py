"""What sampling keeps of a sequence between steps: its last token, how often its tokens occur."""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from headrace.kernels.triton_launch import start_dependents, wait_for_inputs


@triton.jit(do_not_specialize=["num_fed"])
def feed_kernel(
    token_ids,
    fed_tokens,
    fed_rows,
    last_tokens,
    num_fed,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (blocks of ``BLOCK``,): ``token_ids[fed_tokens] = last_tokens[fed_rows]``, all int32."""
    start_dependents(PDL)
    wait_for_inputs(PDL)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_fed
    row = tl.load(fed_rows + index, mask=inside, other=0)
    target = tl.load(fed_tokens + index, mask=inside, other=0)
    tl.store(token_ids + target, tl.load(last_tokens + row, mask=inside, other=0), mask=inside)


@triton.jit(do_not_specialize=["row", "num_tokens"])
def count_kernel(
    counts,
    row,
    token_ids,
    occurrences,
    num_tokens,
    vocab_size,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (1,): one row of counts [rows, vocab_size] int16 is cleared and filled.

    Args:
        token_ids: [num_tokens] int32, each once.
        occurrences: [num_tokens] int32, as ``draw_kernel`` reads them.
    """
    start_dependents(PDL)
    wait_for_inputs(PDL)
    lane = tl.arange(0, BLOCK)
    mine = counts + row.to(tl.int64) * vocab_size
    for start in range(0, vocab_size, BLOCK):
        index = start + lane
        tl.store(mine + index, tl.zeros([BLOCK], tl.int16), mask=index < vocab_size)
    tl.debug_barrier()
    for start in range(0, num_tokens, BLOCK):
        inside = start + lane < num_tokens
        token = tl.load(token_ids + start + lane, mask=inside, other=0)
        count = tl.load(occurrences + start + lane, mask=inside, other=0)
        tl.store(mine + token, count.to(tl.int16), mask=inside)
