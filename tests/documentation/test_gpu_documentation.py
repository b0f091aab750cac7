"""The table in docs/gpu.md says what its record says."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_table_agrees_with_its_record() -> None:
    record = json.loads((ROOT / "benchmarks/records/h100-latency.json").read_text())
    text = (ROOT / "docs/gpu.md").read_text()
    printed = re.findall(r"^\| (.+?) \| ([\d.]+) \|$", text, re.MULTILINE)
    measured = {
        (row["metric"], row["batch"], row["context"]): row["value"]
        for row in record["rows"]
        if row["unit"] == "ms"
    }
    assert len(printed) == len(measured)
    for label, value in printed:
        if label.startswith("prefill"):
            batch, context = map(int, re.findall(r"\d+", label))
            key = ("prefill_ms", batch, context)
        else:
            numbers = [int(number) for number in re.findall(r"\d+", label)]
            key = ("decode_step_ms", numbers[0], numbers[1] if len(numbers) > 1 else 128)
        decimals = len(value.partition(".")[2])
        assert f"{measured[key]:.{decimals}f}" == value, label
