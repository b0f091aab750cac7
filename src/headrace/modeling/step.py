"""The inputs of one step, as tensors in place: what every operation of a forward reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


def _no_adapters() -> torch.Tensor:
    return torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class StepInputs:
    """One step's tokens, packed without padding: T tokens of S sequences, of which R are sampled.

    The same structure describes prefill, chunked prefill, decode and any mix: a sequence brings
    ``query_start[s + 1] - query_start[s]`` new tokens, which attend to its cached context and
    causally to each other. Tensors are int32 on the model's device; recorded programs and
    captured graphs see them at full capacity, eager backends as views of exactly T, S and R.

    Attributes:
        token_ids: [T].
        positions: [T] position of each token in its sequence.
        cache_slots: [T] where each token's key and value go: block * block_size + offset.
        query_start: [S + 1] first token of each sequence, then T.
        context_lengths: [S] length of each sequence's context after this step, new tokens included.
        rows: [S] row of ``block_tables`` that belongs to each sequence.
        block_tables: [max_rows, max_blocks] cache blocks of each row, in order of position.
        sampled_tokens: [R] index among the T tokens of each token whose logits are wanted.
        max_query_length: Largest number of new tokens of one sequence (1: a pure decode step).
        max_context_length: Largest of ``context_lengths``.
        whole_prompts: Every sequence is a prompt of ``max_query_length`` tokens, none of it cached;
            said only where the maxima are exact.
        adapter_of_token: [T] index of each token's adapter, -1 for none; read only by
            ``Operations.add_low_rank``, and empty where the model carries no adapters.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cache_slots: torch.Tensor
    query_start: torch.Tensor
    context_lengths: torch.Tensor
    rows: torch.Tensor
    block_tables: torch.Tensor
    sampled_tokens: torch.Tensor
    max_query_length: int
    max_context_length: int
    whole_prompts: bool = False
    adapter_of_token: torch.Tensor = field(default_factory=_no_adapters)
