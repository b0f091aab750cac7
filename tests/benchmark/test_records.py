"""Record files: whole or absent, of one schema, named device first, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest

from headrace.benchmark.provenance import command_line, device_slug
from headrace.benchmark.record import Record, Row, load_record, median_row, record_path
from headrace.benchmark.schema import record_schema
from headrace.hardware.processor import processor
from headrace.link.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
RECORDS = sorted((ROOT / "benchmarks/records").glob("*.json"))


def a_record(**fields: object) -> Record:
    record = Record(
        device="NVIDIA H100 80GB HBM3",
        versions={"peer": "1.2"},
        commit="c",
        command="x",
        system="peer",
        rows=[median_row("ttft_ms", [3.0, 1.0, 2.0], "ms", batch=4, conditions={"rate": 2.0})],
    )
    return msgspec.structs.replace(record, **fields)


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_records_of_the_repository_load_and_follow_the_published_schema(path: Path) -> None:
    record = load_record(path)
    jsonschema_rs.validate(record_schema(), json.loads(path.read_text()))
    assert path.name.startswith(device_slug(record.device)) or path.name.startswith("cpu-")
    assert all(row.samples for row in record.rows)


def test_the_published_schema_is_current() -> None:
    published = json.loads((ROOT / "docs/record.schema.json").read_text())
    assert published == record_schema(), "python -m headrace.benchmark.schema"


def test_what_the_schema_does_not_name_is_refused_by_schema_and_reader(tmp_path: Path) -> None:
    document = json.loads(a_record().encoded())
    document["rows"][0]["colour"] = "red"
    path = tmp_path / "r.json"
    path.write_text(json.dumps(document))
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(record_schema(), document)
    with pytest.raises(ConfigurationError, match="colour"):
        load_record(path)


def test_a_record_is_whole_or_absent(tmp_path: Path) -> None:
    record = a_record()
    path = tmp_path / "deeper" / "r.json"
    record.write(path)
    again = load_record(path)
    assert again == record
    assert again.system_version == "1.2"
    assert again.rows[0] == Row(
        metric="ttft_ms",
        value=2.0,
        unit="ms",
        samples=[3.0, 1.0, 2.0],
        batch=4,
        conditions={"rate": 2.0},
    )
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "r.json", Path("/proc/r.json")):
        with pytest.raises(ConfigurationError, match=f"cannot write {out}"):
            record_path(out, "NVIDIA H100", "latency")
    assert record_path(tmp_path / "new" / "r.json", "NVIDIA H100", "x") == tmp_path / "new/r.json"
    assert not list((tmp_path / "new").iterdir())


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    a_record().write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        a_record(commit=object()).write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema version 2; this"),
        (lambda text: text[: len(text) // 2], "not a whole record"),
        (lambda text: "", "not a whole record"),
        (lambda text: "[]", "not a record"),
        (lambda text: "\xff", "not a whole record"),
        (lambda text: text.replace("[3.0,1.0,2.0]", "[]"), "row 0 .`ttft_ms`. has no samples"),
        (lambda text: text.replace('"value":2.0', '"value":"2"'), "rows"),
    ],
    ids=["version", "half", "empty", "array", "bytes", "no samples", "type"],
)
def test_a_record_that_cannot_be_used_is_named_in_one_line(tmp_path, change, says) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(change(a_record().encoded().decode()).encode("latin-1"))
    with pytest.raises(ConfigurationError, match=says) as refused:
        load_record(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_names_begin_with_the_device(tmp_path: Path) -> None:
    device = "NVIDIA H100 80GB HBM3"
    first = record_path(tmp_path, device, "latency-llama3-8b")
    assert first == tmp_path / "h100-latency-llama3-8b.json"
    first.touch()
    assert record_path(tmp_path, device, "latency-llama3-8b").stem.endswith("llama3-8b-2")
    assert record_path(tmp_path / "r.json", device, "x") == tmp_path / "r.json"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file"):
        record_path(tmp_path / "file", device, "x")


@pytest.mark.parametrize(
    ("device", "slug"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("AMD Instinct MI250X / MI250", "mi250x"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("AMD EPYC (zen3), 2 CPUs", "cpu-zen3"),
        ("AMD EPYC (zen4), 2 CPUs", "cpu-zen4"),
        ("Intel Xeon (emeraldrapids), 2 of 16 CPUs", "cpu-emeraldrapids"),
    ],
)
def test_short_names_of_devices(device: str, slug: str) -> None:
    assert device_slug(device) == slug


def test_short_name_of_this_processor() -> None:
    assert device_slug(processor()).startswith("cpu-")


def test_commands_are_recorded_as_typed() -> None:
    assert command_line(["/somewhere/bin/headrace", "bench", "a b"]) == "headrace bench 'a b'"
    module = "/somewhere/headrace/cli/__main__.py"
    assert command_line([module, "bench"]) == "headrace bench"
    assert command_line(["benchmarks/x.py", "-n", "1"]) == "python benchmarks/x.py -n 1"
