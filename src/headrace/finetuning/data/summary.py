"""What was found in a data set, for people: counts, lengths, a histogram."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_BAR = 40


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
    """Token lengths by powers of two, a line a bin from the shortest to the longest."""
    bins: dict[int, int] = {}
    for length in lengths:
        bins[length.bit_length()] = bins.get(length.bit_length(), 0) + 1
    most = max(bins.values())
    lines = []
    for bits in range(min(bins), max(bins) + 1):
        count = bins.get(bits, 0)
        bar = "█" * max(round(count / most * _BAR), 1 if count else 0)
        lines.append(f"{1 << (bits - 1):>7,} – {(1 << bits) - 1:>7,} tokens {count:>8,} {bar}")
    return lines
