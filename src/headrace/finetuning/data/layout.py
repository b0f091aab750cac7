"""How encoded rows become rows of a batch: padded, packed side by side, or running text cut up."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.finetuning.data.encode import IGNORED, EncodedRow


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row of a batch.

    Attributes:
        input_ids: Token ids.
        labels: The same ids, or ``IGNORED``.
        lengths: Tokens of each sequence in the row; sequences do not attend to each other.
    """

    input_ids: list[int]
    labels: list[int]
    lengths: list[int]


@dataclass(frozen=True, slots=True)
class LaidOut:
    """The rows of a data set, and what was left out of them.

    Attributes:
        left_over_tokens: Tokens at the end of the running text that fill no row.
        rows_without_labels: Fixed rows left out because nothing in them is learnt.
    """

    rows: list[TrainingRow]
    left_over_tokens: int = 0
    rows_without_labels: int = 0


def lay_out(rows: Sequence[EncodedRow], layout: str, length: int) -> LaidOut:
    """Rows for batches.

    Args:
        rows: None longer than ``length`` unless the layout is ``fixed``.
        layout: ``padded``: as they are; ``packed``: as many as fit side by side, longest first
            into the fullest row that has room (best-fit decreasing); ``fixed``: all text end to
            end, cut into rows of exactly ``length`` tokens, which see what stands before them.
        length: Tokens in the longest row.
    """
    if layout == "packed":
        return LaidOut(_packed(rows, length))
    if layout == "fixed":
        return _fixed(rows, length)
    return LaidOut([TrainingRow(row.input_ids, row.labels, [len(row.input_ids)]) for row in rows])


def _packed(rows: Sequence[EncodedRow], length: int) -> list[TrainingRow]:
    bins: list[list[EncodedRow]] = []
    # Ascending (room left, bin): the first with enough room is the fullest one that fits.
    room: list[tuple[int, int]] = []
    for row in sorted(rows, key=lambda row: len(row.input_ids), reverse=True):
        needed = len(row.input_ids)
        place = bisect.bisect_left(room, (needed, -1))
        if place == len(room):
            left, chosen = length, len(bins)
            bins.append([])
        else:
            left, chosen = room.pop(place)
        bins[chosen].append(row)
        bisect.insort(room, (left - needed, chosen))
    return [_joined(parts) for parts in bins]


def _joined(parts: Sequence[EncodedRow]) -> TrainingRow:
    input_ids: list[int] = []
    labels: list[int] = []
    for part in parts:
        input_ids += part.input_ids
        # The last token of the sequence before must not be asked for the first of this one.
        labels += [IGNORED, *part.labels[1:]]
    return TrainingRow(input_ids, labels, [len(part.input_ids) for part in parts])


def _fixed(rows: Sequence[EncodedRow], length: int) -> LaidOut:
    input_ids = [token for row in rows for token in row.input_ids]
    labels = [label for row in rows for label in row.labels]
    whole = len(input_ids) // length
    cut, empty = [], 0
    for start in range(0, whole * length, length):
        row = TrainingRow(
            input_ids[start : start + length], labels[start : start + length], [length]
        )
        if any(label != IGNORED for label in row.labels[1:]):
            cut.append(row)
        else:
            empty += 1
    return LaidOut(cut, len(input_ids) - whole * length, empty)
