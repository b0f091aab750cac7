"""Recorded runs: one JSON file a run, with every sample, so that figures can be challenged."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import msgspec

SCHEMA = 1


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measured figure.

    Attributes:
        metric: ``decode_step_ms``, ``prefill_ms``, ``output_tokens_per_s``, ``ttft_ms``, …
        value: The median of ``samples`` unless the metric's name says otherwise (``…_p99``).
        unit: ``ms``, ``s``, ``1/s``, ``GiB``, …
        samples: Every measurement that ``value`` summarises.
        batch: Sequences (or clients) at once.
        context: Prompt length in tokens.
        weights: Format of the weights that were computed with, such as ``bf16`` or ``q4_1``.
        kv: dtype of the KV cache.
    """

    metric: str
    value: float
    unit: str
    samples: list[float]
    batch: int | None = None
    context: int | None = None
    weights: str | None = None
    kv: str | None = None


class Record(msgspec.Struct, kw_only=True):
    """One run of one system on one device."""

    schema: int = SCHEMA
    device: str
    driver: str | None = None
    versions: dict[str, str]
    commit: str
    command: str
    seed: int | None = None
    system: str
    rows: list[Row]

    def write(self, path: Path) -> None:
        """Write the whole record at once: a file is complete or absent."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        partial.replace(path)


def median_row(metric: str, samples: list[float], unit: str, **facts: object) -> Row:
    """A row whose value is the median of ``samples``; ``facts`` are ``Row``'s other fields."""
    row = Row(metric=metric, value=statistics.median(samples), unit=unit, samples=samples)
    return msgspec.structs.replace(row, **facts)


def processor() -> str:
    """The CPU's name and the number of CPUs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} CPUs" if names else platform.processor()


def commit_of(checkout: Path) -> str:
    """The commit that is measured; ``unknown`` outside a checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Python and of those ``packages`` that are installed."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def command_line() -> str:
    """The command of this process, as one would type it."""
    return " ".join(["python", *sys.argv])
