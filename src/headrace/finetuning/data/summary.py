"""What was found in a data set, for people: counts, lengths, a histogram."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_BAR = 40
_BINS = 10
_WIDE = 8


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Figures of one checked data set.

    Attributes:
        kind: ``messages``, ``prompt-completion`` or ``text``.
        rows: Good rows.
        bad_rows: Rows that were skipped.
        lengths: Tokens of each good row; empty where there was no tokenizer.
        trained_tokens: Tokens that count in the loss.
        batch_rows: Rows after packing or cutting.
        left_over_tokens: Tokens that fill no row of a fixed length.
        rows_without_labels: Fixed rows in which nothing is learnt.
    """

    name: str
    kind: str
    rows: int
    bad_rows: int
    lengths: Sequence[int] = ()
    trained_tokens: int = 0
    batch_rows: int = 0
    left_over_tokens: int = 0
    rows_without_labels: int = 0

    def lines(self) -> list[str]:
        """The figures as lines of text."""
        skipped = f", {self.bad_rows:,} skipped" if self.bad_rows else ""
        lines = [f"{self.name}: {self.rows:,} rows ({self.kind}){skipped}"]
        if not self.lengths:
            return lines
        total = sum(self.lengths)
        lines.append(
            f"  {total:,} tokens, {self.trained_tokens:,} of them in the loss; a row has "
            f"{min(self.lengths):,} to {max(self.lengths):,}, "
            f"median {statistics.median(self.lengths):,.0f}"
        )
        if self.batch_rows != self.rows:
            lines.append(f"  laid out in {self.batch_rows:,} rows")
        if self.left_over_tokens:
            lines.append(f"  {self.left_over_tokens:,} tokens at the end fill no row: left out")
        if self.rows_without_labels:
            lines.append(
                f"  {self.rows_without_labels:,} rows hold nothing to learn: left out "
                "(--train-on all keeps them)"
            )
        return lines + [f"  {line}" for line in histogram(self.lengths)]


def histogram(lengths: Sequence[int]) -> list[str]:
    """Token lengths, a line a bin from the shortest to the longest.

    Bins are equally wide where the longest is less than ``_WIDE`` times the shortest, else each
    is twice as wide as the one before.
    """
    edges = _edges(min(lengths), max(lengths))
    counts = Counter(bisect_right(edges, length) - 1 for length in lengths)
    most = max(counts.values())
    lines = []
    for index, (first, end) in enumerate(pairwise(edges)):
        count = counts[index]
        bar = "█" * max(round(count / most * _BAR), 1 if count else 0)
        lines.append(f"{first:>7,} – {end - 1:>7,} tokens {count:>8,} {bar}")
    return lines


def _edges(shortest: int, longest: int) -> list[int]:
    """Where bins begin, and where the last one ends."""
    if longest >= _WIDE * shortest:
        return [1 << bits for bits in range(shortest.bit_length() - 1, longest.bit_length() + 1)]
    steps = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    step = next(step for step in steps if longest - shortest < _BINS * step)
    first = shortest - shortest % step
    return list(range(first, longest + step + 1, step))
