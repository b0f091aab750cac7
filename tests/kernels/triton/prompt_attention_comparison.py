"""Hopper's attention of whole prompts against float32, at odd lengths, with poisoned neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention
from workbench import Case, relative_error

from headrace.kernels.attention import hopper
from headrace.kernels.triton_launch import GpuTraits

SPARE_TOKENS = 40


def prompt_attention_error(
    sequences: int,
    length: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    traits: GpuTraits,
) -> float:
    """Relative error; infinite where something outside of the output changed.

    The first sequence's neighbour is not a number: it must not be seen there.
    """
    tokens, width = sequences * length, (heads + 2 * kv_heads) * head_dim
    qkv = torch.randn(tokens + SPARE_TOKENS, width, device="cuda").to(dtype)
    qkv[tokens:] = float("nan")
    if sequences > 2:
        qkv[length : 2 * length] = float("nan")
    out = torch.full((tokens + SPARE_TOKENS, heads * head_dim), 7.0, device="cuda", dtype=dtype)
    hopper.prompt_attention(
        qkv[:tokens], heads, kv_heads, head_dim**-0.5, sequences, out[:tokens], traits
    )
    if not bool((out[tokens:] == 7.0).all()):
        return float("inf")
    parts = qkv[:tokens].float().view(sequences, length, -1, head_dim).transpose(1, 2)
    query, key, value = parts.split((heads, kv_heads, kv_heads), dim=1)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    result = out[:tokens].view(sequences, length, heads, head_dim).transpose(1, 2)
    whole = [index for index in range(sequences) if sequences <= 2 or index != 1]
    return relative_error(result[whole], expected[whole])


def prompt_attention_cases(dtype: torch.dtype, traits: GpuTraits) -> Iterator[Case]:
    """Every head size and grouping; none where the device has no such kernel."""
    if not traits.warpgroup_kernels:
        return
    name = str(dtype).removeprefix("torch.")
    for head_dim in hopper.HEAD_SIZES:
        for group in hopper.GROUPS:
            for sequences, length in ((1, 1), (1, 129), (3, 77), (1, 2048), (5, 640)):
                yield (
                    f"prompt attention {sequences}x{length} {group} {head_dim} {name}",
                    partial(
                        prompt_attention_error,
                        sequences,
                        length,
                        2 * group,
                        2,
                        head_dim,
                        dtype,
                        traits,
                    ),
                )
