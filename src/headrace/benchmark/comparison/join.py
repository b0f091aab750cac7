"""Rows of several records that were measured under the same conditions, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headrace.benchmark.comparison.noise import REPEATABILITY, Difference, difference
from headrace.benchmark.provenance import device_slug
from headrace.benchmark.record import Record, Row
from headrace.link.errors import ConfigurationError

_FACTS = ("batch", "context", "new_tokens", "weights", "kv")

Facts = dict[str, object]


@dataclass(frozen=True)
class Line:
    """One figure in every record.

    Attributes:
        facts: What tells it from the metric's other lines.
        rows: One a record, in their order; ``None``: that record lacks it.
        differences: Of each to the first record's; ``None`` for the first and where one lacks it.
    """

    metric: str
    unit: str
    facts: Facts
    rows: tuple[Row | None, ...]
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class Comparison:
    """Records with names that tell them apart, and what they have in common."""

    labels: tuple[str, ...]
    records: tuple[Record, ...]
    lines: tuple[Line, ...]
    repeatability: float

    def metrics(self) -> list[str]:
        """Each metric once, in the records' order."""
        return list(dict.fromkeys(line.metric for line in self.lines))

    def software(self) -> str:
        """That records of one system are of different commits, with both; empty where not."""
        system = {record.system for record in self.records}
        commits = [record.commit[:7] for record in self.records]
        if len(system) > 1 or len(set(commits)) == 1:
            return ""
        named = ", ".join(
            f"{label} {commit}" for label, commit in zip(self.labels, commits, strict=True)
        )
        return f"different commits: {named}"

    def of(self, metric: str) -> list[Line]:
        """The lines of one metric, by every fact but the batch, then by batch."""
        return sorted((line for line in self.lines if line.metric == metric), key=_order)


def compare(
    records: Sequence[tuple[str, Record]],
    repeatability: float = REPEATABILITY,
    metrics: Sequence[str] = (),
) -> Comparison:
    """Join records on metric and conditions.

    Args:
        records: A name for each, used where device and system do not tell two apart.
        repeatability: Share below which a difference counts as noise.
        metrics: The only ones wanted; empty: all.

    Raises:
        ConfigurationError: fewer than two records, or nothing that two of them share.
    """
    if len(records) < 2:
        raise ConfigurationError("a comparison needs at least two records")
    indexed = [{_key(row): row for row in record.rows} for _, record in records]
    keys = dict.fromkeys(key for rows in indexed for key in rows)
    shared = [key for key in keys if sum(key in rows for rows in indexed) > 1]
    if metrics:
        shared = [key for key in shared if key[0] in metrics]
    if not shared:
        names = ", ".join(name for name, _ in records)
        what = " or ".join(metrics) or "figure"
        raise ConfigurationError(f"no {what} was measured under equal conditions in {names}")
    return Comparison(
        _labels(records),
        tuple(record for _, record in records),
        tuple(_line([rows.get(key) for rows in indexed], repeatability) for key in shared),
        repeatability,
    )


def varying(lines: Iterable[Line]) -> list[str]:
    """Names of the facts in which these lines differ."""
    listed = list(lines)
    names = dict.fromkeys(name for line in listed for name in line.facts)
    return [name for name in names if len({str(line.facts.get(name)) for line in listed}) > 1]


def label(facts: Facts, names: Sequence[str]) -> str:
    """The named facts in few characters: ``8 × 1024``, ``8 × 1024, q4_1``."""
    sizes = [str(facts[n]) for n in ("batch", "context") if n in names and n in facts]
    texts = [" × ".join(sizes)] if sizes else []
    for name in names:
        if name in facts and name not in ("batch", "context"):
            fact = facts[name]
            texts.append(fact if isinstance(fact, str) else f"{name.replace('_', ' ')} {fact}")
    return ", ".join(texts)


def _key(row: Row) -> tuple[str, str]:
    return row.metric, repr(sorted(_facts(row).items()))


def _facts(row: Row) -> Facts:
    facts: Facts = {name: getattr(row, name) for name in _FACTS if getattr(row, name) is not None}
    return facts | row.conditions


def _line(rows: list[Row | None], repeatability: float) -> Line:
    some = next(row for row in rows if row is not None)
    first = rows[0]
    return Line(
        some.metric,
        some.unit,
        _facts(some),
        tuple(rows),
        (
            None,
            *(
                None if first is None or row is None else difference(first, row, repeatability)
                for row in rows[1:]
            ),
        ),
    )


def _order(line: Line) -> tuple[object, ...]:
    """Numbers before texts, so that unlike facts can be sorted."""

    def sortable(fact: object) -> tuple[int, float, str]:
        if isinstance(fact, (int, float)):
            return 0, float(fact), ""
        return 1, 0.0, str(fact)

    others = [sortable(line.facts.get(name, "")) for name in ("weights", "kv", "context")]
    rest = [sortable(line.facts[n]) for n in sorted(line.facts) if n not in _FACTS]
    sizes = [sortable(line.facts.get(name, 0)) for name in ("new_tokens", "batch")]
    return (*others, *rest, *sizes)


def _labels(records: Sequence[tuple[str, Record]]) -> tuple[str, ...]:
    """The shortest names that differ: the device, then the system, its version, the file."""
    devices = [_device_name(record.device) for _, record in records]
    systems = [f"{record.system} {record.system_version}".strip() for _, record in records]
    both = [f"{device}, {system}" for device, system in zip(devices, systems, strict=True)]
    files = [name for name, _ in records]
    for candidates in (devices, systems, both):
        if len(set(candidates)) == len(candidates):
            return tuple(candidates)
    return tuple(files)


def _device_name(device: str) -> str:
    slug = device_slug(device)
    return slug if slug.startswith("cpu-") or "-" in slug else slug.upper()
