"""Recorded runs: one JSON file a run, with every sample, so that figures can be challenged."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, Literal

import msgspec

import headrace
from headrace.benchmark.provenance import command_line, device_slug, own_commit
from headrace.link.errors import ConfigurationError

SCHEMA: Final = 1

Condition = str | float | int | bool


class Row(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One measured figure.

    Attributes:
        metric: ``decode_step_ms``, ``prefill_ms``, ``output_tokens_per_s``, ``ttft_ms``, …
        value: The median of ``samples`` unless the metric's name says otherwise (``…_p99``).
        unit: ``ms``, ``s``, ``1/s``, ``GiB``, …
        samples: Every measurement that ``value`` summarises.
        batch: Sequences (or clients) at once.
        context: Prompt length in tokens.
        new_tokens: Tokens generated for each sequence.
        weights: Format of the weights that were computed with, such as ``bf16`` or ``q4_1``.
        kv: dtype of the KV cache.
        conditions: Whatever else tells this row from another of the same metric.
    """

    metric: str
    value: float
    unit: str
    samples: list[float]
    batch: int | None = None
    context: int | None = None
    new_tokens: int | None = None
    weights: str | None = None
    kv: str | None = None
    conditions: dict[str, Condition] = {}


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One run of one system on one device.

    Attributes:
        schema: Version of this layout.
        device: What the driver calls the GPU, or the processor and its number of CPUs.
        driver: Version of the GPU's kernel driver.
        versions: Package to version, the measured system's own among them.
        commit: Of the headrace checkout that measured.
        command: As typed.
        seed: Of weights and prompts.
        system: ``headrace``, or the name of a peer.
        system_version: Of ``system``; taken from ``versions`` where it stands there.
        model: Directory, hub id or shape that was measured.
    """

    schema: Literal[1] = SCHEMA
    device: str
    driver: str | None = None
    versions: dict[str, str]
    commit: str
    command: str
    seed: int | None = None
    system: str
    system_version: str = ""
    model: str | None = None
    rows: list[Row]

    def __post_init__(self) -> None:
        if not self.system_version:
            self.system_version = self.versions.get(self.system, "")

    def write(self, path: Path) -> None:
        """Write the whole record at once: a file is complete or absent."""
        write_whole(path, self.encoded())

    def encoded(self) -> bytes:
        """As JSON: a line a field, a line a row."""
        encode = msgspec.json.encode
        lines = [
            b" " + encode(name) + b": " + encode(getattr(self, name))
            for name in self.__struct_fields__
            if name != "rows"
        ]
        rows = b",\n".join(b"  " + encode(row) for row in self.rows)
        return b"{\n" + b",\n".join(lines) + b',\n "rows": [\n' + rows + b"\n ]\n}\n"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is complete or absent, and its directory if need be.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from None


def own_record(device: str, rows: list[Row], versions: dict[str, str], **facts: object) -> Record:
    """A record of this headrace, in this process, by the command that was typed.

    Args:
        versions: Of the packages that the figures depend on.
        facts: ``Record``'s other fields: ``driver``, ``seed``, ``model``.
    """
    record = Record(
        device=device,
        versions=versions,
        commit=own_commit(),
        command=command_line(),
        system="headrace",
        system_version=headrace.__version__,
        rows=rows,
    )
    return msgspec.structs.replace(record, **facts)


class _Version(msgspec.Struct):
    schema: int = SCHEMA


def load_record(path: Path) -> Record:
    """Read a record.

    Raises:
        ConfigurationError: no such file, not a whole record, or one of another schema version.
    """
    try:
        document = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"record {path}: {error.strerror or error}") from None
    try:
        version = msgspec.json.decode(document, type=_Version).schema
        if version != SCHEMA:
            raise ConfigurationError(
                f"record {path} has schema version {version}; this headrace reads {SCHEMA}"
            )
        record = msgspec.json.decode(document, type=Record)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path} is not a record: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not a whole record: {error}") from None
    for index, row in enumerate(record.rows):
        if not row.samples:
            raise ConfigurationError(
                f"{path} is not a record: row {index} (`{row.metric}`) has no samples"
            )
    return record


def median_row(metric: str, samples: Sequence[float], unit: str, **facts: object) -> Row:
    """A row whose value is the median of ``samples``; ``facts`` are ``Row``'s other fields."""
    row = Row(metric=metric, value=statistics.median(samples), unit=unit, samples=list(samples))
    return msgspec.structs.replace(row, **facts)


def record_path(out: Path | None, device: str, what: str) -> Path:
    """Where a run is written: ``out``, or a free name in it that begins with the device.

    Call it before the run, which would be lost where nothing can be written.

    Args:
        out: A file to write or replace, a directory to choose a name in, or ``None``: the
            current directory.
        device: As in the record.
        what: The rest of the name, such as ``latency-llama3-8b``.

    Raises:
        ConfigurationError: ``out`` is a file name that does not end in ``.json``, or no file can be
            made there.
    """
    if out is not None and out.suffix == ".json" and not out.is_dir():
        _check_writable(out)
        return out
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigurationError(f"--out {out}: name a directory or a file that ends in .json")
    directory = out or Path()
    stem = f"{device_slug(device)}-{what}"
    path, number = directory / f"{stem}.json", 2
    while path.exists():
        path, number = directory / f"{stem}-{number}.json", number + 1
    _check_writable(path)
    return path


def _check_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from None
