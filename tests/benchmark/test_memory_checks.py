"""Forecasts of memory against every peak that is on record."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.benchmark.memory_checks import MemoryCheck, memory_checks

RECORDS = Path(__file__).parents[2] / "benchmarks/records"
CHECKS = list(memory_checks(RECORDS))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.device}, {check.of}")
def test_recorded_peaks_are_predicted_within_5_percent(check: MemoryCheck) -> None:
    assert check.predicted == pytest.approx(check.measured, rel=0.05)


def test_there_is_one_of_each_kind() -> None:
    read = {check.of.rpartition(", ")[2] for check in CHECKS}
    assert {"allocated", "in use"} <= read
    assert {check.of.split()[0] for check in CHECKS} == {"serving", "training"}
