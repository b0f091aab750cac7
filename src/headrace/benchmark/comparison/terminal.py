"""A comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from headrace.benchmark.comparison.join import Comparison, label, varying
from headrace.benchmark.tables import number


def rule(repeatability: float) -> str:
    """In words: when a difference is called noise."""
    return (
        "≈ marks a difference within the noise: the 95 % intervals of the two medians (order "
        f"statistics of the samples) overlap, or the medians differ by less than "
        f"{100 * repeatability:g} %."
    )


def comparison_tables(comparison: Comparison) -> Iterator[Table]:
    """One table a metric; the gain is of each series over the first."""
    first = comparison.labels[0]
    for metric in comparison.metrics():
        lines = comparison.of(metric)
        names = varying(lines)
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        table.add_column(metric, no_wrap=True)
        table.add_column(first, justify="right")
        for series in comparison.labels[1:]:
            table.add_column(series, justify="right")
            table.add_column(f"against {first}", justify="right")
        for line in lines:
            cells = []
            for row, difference in zip(line.rows, line.differences, strict=True):
                cells.append("–" if row is None else number(row.value))
                cells.append("" if difference is None else str(difference))
            del cells[1]
            table.add_row(label(line.facts, names) or line.unit, *cells)
        yield table
