"""Attention of fresh prompts beside a broken one, read as the projection left them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from workbench import Case, relative_error

from headrace.kernels.attention import reference, triton
from headrace.kernels.triton_launch import GpuTraits

BLOCK_SIZE, HEADS, KV_HEADS, HEAD_DIM = 16, 4, 2, 64


def fresh_attention_error(
    lengths: list[int], broken: int, device: torch.device, dtype: torch.dtype, traits: GpuTraits
) -> float:
    """Relative error of all prompts but ``broken``, whose projection is not a number."""
    starts = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
    tokens, blocks = starts[-1], [-(-length // BLOCK_SIZE) for length in lengths]
    qkv = torch.randn(tokens, (HEADS + 2 * KV_HEADS) * HEAD_DIM, device=device).to(dtype)
    qkv[starts[broken] : starts[broken + 1]] = float("nan")
    size = sum(blocks), KV_HEADS, BLOCK_SIZE, HEAD_DIM
    keys, values = (
        torch.zeros(size, device=device, dtype=dtype).permute(0, 2, 1, 3) for _ in range(2)
    )
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
    for index, length in enumerate(lengths):
        first = sum(blocks[:index])
        tables[index, : blocks[index]] = torch.arange(first, first + blocks[index])
        for position in range(length):
            heads = qkv[starts[index] + position].view(-1, HEAD_DIM)
            page, offset = first + position // BLOCK_SIZE, position % BLOCK_SIZE
            keys[page, offset] = heads[HEADS : HEADS + KV_HEADS]
            values[page, offset] = heads[HEADS + KV_HEADS :]

    def integers(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    common = qkv, HEADS, KV_HEADS, HEAD_DIM**-0.5, None, keys, values, integers(starts)
    common = *common, integers(lengths), integers(list(range(len(lengths)))), tables.to(device)
    out = torch.full((tokens, HEADS * HEAD_DIM), float("nan"), device=device, dtype=dtype)
    expected = torch.full_like(out, float("nan"), dtype=torch.float32)
    workspace = triton.AttentionWorkspace(device)
    longest = max(lengths)
    triton.paged_attention(*common, out, longest, longest, workspace, traits)
    reference.paged_attention(*common, expected)
    others = [n for n in range(tokens) if not starts[broken] <= n < starts[broken + 1]]
    return relative_error(out[others], expected[others])


def fresh_attention_cases(
    device: torch.device, dtype: torch.dtype, traits: GpuTraits
) -> Iterator[Case]:
    """As a device does it whose copy engine fetches whole tiles."""
    name = str(dtype).removeprefix("torch.")
    traits = replace(traits, wide_matrix_unit=True)
    for lengths, broken in (([37, 50], 1), ([20, 9, 70], 1), ([65, 64], 0)):
        label = "+".join(map(str, lengths))
        yield (
            f"attention fresh {label} {name}",
            partial(fresh_attention_error, lengths, broken, device, dtype, traits),
        )
