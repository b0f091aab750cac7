"""Plain reference of sampling: one row at a time, in the order of Transformers' and TGI's warpers.

Order: bias and forbidden ids, repetition, frequency and presence penalties, temperature, top-k,
top-p, typical-p, then one draw by the inverse of the cumulative distribution.
"""

from __future__ import annotations

import torch

_MASK = 2**64 - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments.

    Two rounds of SplitMix64's finaliser (Steele et al., 2014): the first scrambles the seed, the
    second its sum with the position's step of the golden gamma. The upper 24 bits are returned,
    which float32 holds exactly.

    Args:
        seed: Of the request, 0 <= seed < 2**64.
        position: Position in the sequence of the token that is drawn.
    """
    mixed = splitmix64((splitmix64(seed) + position * 0x9E3779B97F4A7C15) & _MASK)
    return float((mixed >> 40) * 2.0**-24)


def splitmix64(state: int) -> int:
    """SplitMix64's output for ``state``: a bijection of the 64-bit integers."""
    mixed = (state + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def penalise(
    logits: torch.Tensor,
    occurs: torch.Tensor,
    output_counts: torch.Tensor,
    repetition_penalty: float,
    frequency_penalty: float,
    presence_penalty: float,
) -> torch.Tensor:
    """Penalties on one row [vocab].

    Args:
        logits: [vocab] float32.
        occurs: [vocab] bool: the token occurs in prompt or output.
        output_counts: [vocab] int: occurrences in the output.
        repetition_penalty: Divides positive and multiplies negative logits of what occurs.
        frequency_penalty: Subtracted once for each occurrence in the output.
        presence_penalty: Subtracted once where the output has the token at all.
    """
    repeated = torch.where(logits > 0, logits / repetition_penalty, logits * repetition_penalty)
    result = torch.where(occurs, repeated, logits)
    return (
        result
        - frequency_penalty * output_counts
        - presence_penalty * (output_counts > 0).to(result.dtype)
    )


def warp(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    typical_p: float | None,
) -> torch.Tensor:
    """Temperature and filters on one row [vocab]: excluded tokens become -inf."""
    row = logits / temperature
    if top_k is not None:
        row = _keep(row, row >= row.topk(min(top_k, row.numel())).values[-1])
    if top_p is not None:
        ranked, order = row.sort(descending=True, stable=True)
        mass = ranked.softmax(-1).cumsum(-1)
        kept = torch.ones_like(ranked, dtype=torch.bool)
        kept[1:] = mass[:-1] < top_p
        row = _keep(row, torch.zeros_like(kept).scatter(0, order, kept))
    if typical_p is not None:
        logprobs = row.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum()
        order = (-logprobs - entropy).abs().sort(stable=True).indices
        mass = row[order].softmax(-1).cumsum(-1)
        kept = torch.ones_like(row, dtype=torch.bool)
        kept[1:] = mass[:-1] < typical_p
        row = _keep(row, torch.zeros_like(kept).scatter(0, order, kept))
    return row


def draw(logits: torch.Tensor, uniform_number: float) -> int:
    """The first token at which the cumulative probability exceeds ``uniform_number``."""
    cumulative = logits.softmax(-1).double().cumsum(-1)
    return int((cumulative <= uniform_number * cumulative[-1]).sum())


def _keep(row: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    return row.masked_fill(~kept, float("-inf"))
