"""Rows to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headrace.finetuning.data.encode import IGNORED

NUM_TOKENS = "num_tokens"
"""Key of the number of tokens in a batch, padding not counted: an int, known without the device."""


class Collator:
    """Pads rows to the longest of the batch.

    Rows of several sequences get position ids that start anew at each: attention then keeps the
    sequences apart. Padding is a sequence of its own there; elsewhere an attention mask hides it.

    Args:
        pad_id: Token id of padding.
        packed: Rows may hold several sequences.
        multiple: Rows that are not packed are as wide as a multiple of this.
    """

    def __init__(self, pad_id: int, packed: bool, multiple: int = 1) -> None:
        self._pad_id = pad_id
        self._packed = packed
        self._multiple = multiple

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        """The batch: ``input_ids`` and ``labels`` [rows, tokens], and what attention needs."""
        lengths = [len(row["input_ids"]) for row in rows]
        width = max(lengths)
        if not self._packed:
            width = -(-width // self._multiple) * self._multiple
        batch: dict[str, Any] = {
            "input_ids": _padded([row["input_ids"] for row in rows], width, self._pad_id),
            "labels": _padded([row["labels"] for row in rows], width, IGNORED),
            NUM_TOKENS: sum(lengths),
        }
        if self._packed:
            batch["position_ids"] = _padded(
                [_positions([*row["lengths"], width - sum(row["lengths"])]) for row in rows],
                width,
                0,
            )
        elif min(lengths) < width:
            batch["attention_mask"] = _padded([[1] * length for length in lengths], width, 0)
        return batch


def _padded(rows: Sequence[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _positions(lengths: Sequence[int]) -> list[int]:
    return [position for length in lengths for position in range(length)]
