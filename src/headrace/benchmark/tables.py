"""Rows of a record as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from rich import box
from rich.table import Table

from headrace.benchmark.record import Row
from headrace.benchmark.summary import Summary

_FACTS = ("batch", "context", "new_tokens")
_SUMMARY = ("average", "lowest", "highest", "p50", "p90", "p99")


def samples_table(rows: Iterable[Row]) -> Table:
    """One line a row: what was measured, where, and the summary of its samples."""
    return _table(list(rows), rates=None)


def latency_table(rows: Sequence[Row]) -> Table:
    """The same for times that are each followed by the throughput that they mean."""
    rates = {
        id(time): rate for time, rate in pairwise(rows) if time.unit == "ms" and rate.unit == "1/s"
    }
    return _table([row for row in rows if row.unit != "1/s"], rates)


def number(value: float) -> str:
    """About four significant digits, thousands separated."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def _table(rows: list[Row], rates: dict[int, Row] | None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    facts = [name for name in _FACTS if any(getattr(row, name) is not None for row in rows)]
    conditions = sorted({name for row in rows for name in row.conditions})
    table.add_column("metric", no_wrap=True)
    last = ("tokens/s", "samples") if rates is not None else ("samples",)
    for name in (*facts, *conditions, *_SUMMARY, *last):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        cells = [getattr(row, name) for name in facts]
        cells += [row.conditions.get(name) for name in conditions]
        texts = ["" if cell is None else str(cell) for cell in cells]
        texts += [number(value) for value in Summary.of(row.samples)]
        if rates is not None:
            rate = rates.get(id(row))
            texts.append("" if rate is None else number(rate.value))
        named = row.metric.endswith(("_ms", "_per_s", "_gib"))
        table.add_row(
            row.metric if named else f"{row.metric} ({row.unit})", *texts, str(len(row.samples))
        )
    return table
