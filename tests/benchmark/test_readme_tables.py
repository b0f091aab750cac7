"""Every figure of the README's tables stands in a record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from headrace.benchmark.record import Record, Row, median_row

ROOT = Path(__file__).parents[2]


def test_readme_and_records_agree() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme_tables.py", "--check"], check=False
    )
    assert done.returncode == 0, "run python benchmarks/readme_tables.py"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/records").glob("*.json")), ids=str)
def test_records_follow_the_schema_and_keep_every_sample(path: Path) -> None:
    record = msgspec.json.decode(path.read_bytes(), type=Record)
    assert record.schema == 1
    assert record.rows
    for row in record.rows:
        assert row.samples, row.metric


def test_a_record_is_whole_or_absent(tmp_path: Path) -> None:
    record = Record(
        device="d",
        versions={},
        commit="c",
        command="x",
        system="headrace",
        rows=[median_row("ttft_ms", [3.0, 1.0, 2.0], "ms", batch=4)],
    )
    path = tmp_path / "deeper" / "r.json"
    record.write(path)
    again = msgspec.json.decode(path.read_bytes(), type=Record)
    assert again == record
    assert again.rows[0] == Row(
        metric="ttft_ms", value=2.0, unit="ms", samples=[3.0, 1.0, 2.0], batch=4
    )
    assert list(path.parent.iterdir()) == [path]
