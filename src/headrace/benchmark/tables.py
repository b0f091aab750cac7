"""Rows of a record as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich import box
from rich.table import Table

from headrace.benchmark.record import Condition, Row
from headrace.benchmark.summary import Summary

_FACTS = ("batch", "context", "new_tokens")
_SUMMARY = ("average", "lowest", "highest", "p50", "p90", "p99")

Cells = dict[str, Condition | None]


def samples_table(rows: Sequence[Row]) -> Table:
    """One line a row: what was measured, where, and the summary of its samples."""
    return _table(list(rows), None)


def latency_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table a time, each with the throughput that it means: the row that follows it.

    Rows of other units come last, in one table.
    """
    rates = {
        id(time): rate for time, rate in pairwise(rows) if time.unit == "ms" and rate.unit == "1/s"
    }
    times = [row for row in rows if id(row) in rates]
    for metric in dict.fromkeys(row.metric for row in times):
        yield _table([row for row in times if row.metric == metric], rates)
    told = {id(row) for row in (*times, *rates.values())}
    rest = [row for row in rows if id(row) not in told]
    if rest:
        yield _table(rest, None)


def operations_table(rows: Sequence[Row]) -> Table:
    """Operations of decode steps against their floors; the rows of measured rates come last."""
    table = Table("batch", "context", "operation", "us", "share", "floor us", "of floor", box=None)
    operations = [row for row in rows if "operation" in row.conditions]
    totals: dict[tuple[int | None, int | None], float] = {}
    for row in operations:
        where = row.batch, row.context
        totals[where] = totals.get(where, 0.0) + row.value
    for row in operations:
        floor = row.conditions.get("floor_us")
        known = isinstance(floor, float) and row.value > 0
        table.add_row(
            str(row.batch),
            str(row.context),
            str(row.conditions["operation"]),
            f"{row.value:,.1f}",
            f"{row.value / totals[row.batch, row.context]:.1%}",
            f"{floor:,.1f}" if isinstance(floor, float) else "",
            f"{floor / row.value:.0%}" if known and isinstance(floor, float) else "",
        )
    for row in rows:
        if row not in operations:
            table.add_row("", "", row.metric, number(row.value), "", row.unit, "")
    return table


def number(value: float) -> str:
    """About four significant digits, thousands separated."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}"


def _table(rows: list[Row], rates: dict[int, Row] | None) -> Table:
    """What all rows have in common is the title; with ``rates`` that is the metric too.

    n is the number of samples. Times of a latency sweep fit 80 columns.
    """
    facts = [_facts(row) for row in rows]
    names = list(dict.fromkeys(name for each in facts for name in each))
    common = [name for name in names if len({each.get(name) for each in facts}) == 1]
    varying = [name for name in names if name not in common]
    shared = ", ".join(f"{_spoken(name)} {facts[0][name]}" for name in common)
    title = ": ".join(filter(None, (rows[0].metric if rates else "", shared)))
    table = Table(
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title or None,
        title_justify="left",
        title_style="",
    )
    if rates is None:
        table.add_column("metric", no_wrap=True)
    last = ("n",) if rates is None else ("tokens/s", "n")
    for name in (*map(_spoken, varying), *_SUMMARY, *last):
        table.add_column(name, justify="right", no_wrap=True)
    for row, each in zip(rows, facts, strict=True):
        cells = [] if rates else [_with_unit(row)]
        cells += ["" if each.get(name) is None else str(each[name]) for name in varying]
        cells += [number(value) for value in Summary.of(row.samples)]
        if rates is not None:
            cells.append(number(rates[id(row)].value))
        table.add_row(*cells, str(len(row.samples)))
    return table


def _facts(row: Row) -> Cells:
    """What was measured where, as far as it is said."""
    own: Cells = {name: getattr(row, name) for name in _FACTS}
    return {name: value for name, value in (own | row.conditions).items() if value is not None}


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _with_unit(row: Row) -> str:
    told = row.metric.endswith(("_ms", "_per_s", "_gib", "_s", "_us"))
    return row.metric if told else f"{row.metric} ({row.unit})"
