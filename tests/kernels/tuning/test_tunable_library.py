"""What is asked of torch's TunableOp on ROCm; device and TunableOp are played by fakes."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels.linear.triton import GemmChoice, GemmWorkspace
from headrace.kernels.triton_launch import GpuTraits
from headrace.kernels.tuning import table as tables
from headrace.kernels.tuning.gemm_tuner import GemmTuner, LinearShape
from headrace.kernels.tuning.measure import ChainTimer

MI300X = GpuTraits(304, 65536, dependent_launch=False, wide_matrix_unit=False)
WEIGHTS = {LinearShape(256, 1024, False): [torch.zeros(256, 1024)]}
VALIDATORS = tables.Validators(
    device="A card", dtype="bfloat16", torch="2", triton="3", runtime="6", candidates="a",
    library="",
)  # fmt: skip


class FakeTunable:
    """``torch.cuda.tunable`` as far as it is used: its switches and its file."""

    def __init__(self) -> None:
        self.enabled = self.tunes = False
        self.accepts = True
        self.name = ""

    def enable(self, value: bool) -> None:
        self.enabled = value

    def tuning_enable(self, value: bool) -> None:
        self.tunes = value

    def set_filename(self, name: str) -> None:
        self.name = name

    def read_file(self, name: str) -> bool:
        return self.accepts and Path(name).read_text() == "solutions"


@pytest.fixture
def tunable(monkeypatch: pytest.MonkeyPatch) -> FakeTunable:
    fake = FakeTunable()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "tunable", fake)
    return fake


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tunable: FakeTunable) -> list[bool]:
    """For each measurement, whether TunableOp was tuning."""
    seen: list[bool] = []

    def microseconds(timer: ChainTimer, choice: GemmChoice) -> float:
        seen.append(tunable.enabled and tunable.tunes)
        if seen[-1]:
            # torch writes a solution when it has found it.
            Path(tunable.name).write_text("solutions")
        return 1.0

    monkeypatch.setattr(ChainTimer, "__init__", lambda *_: None)
    monkeypatch.setattr(ChainTimer, "library_algorithms", lambda _: [])
    monkeypatch.setattr(ChainTimer, "microseconds", microseconds)
    monkeypatch.setattr("headrace.kernels.tuning.gemm_tuner.precompile", lambda *_: None)
    monkeypatch.setattr(GemmTuner, "_validators", lambda _: VALIDATORS)
    return seen


def tune(directory: Path | None) -> None:
    device = torch.device("cpu")
    workspace = GemmWorkspace(device)
    GemmTuner(device, torch.bfloat16, MI300X, workspace, directory).tune(WEIGHTS)


def test_solutions_are_tuned_while_products_are_measured_and_then_stand(
    tmp_path: Path, tunable: FakeTunable, measured: list[bool]
) -> None:
    tune(tmp_path)
    assert measured
    assert all(measured)
    assert tunable.enabled
    assert not tunable.tunes
    assert len(list(tmp_path.glob("gemm-*.library.csv"))) == 1


def test_a_second_start_reads_both_files_and_tunes_nothing(
    tmp_path: Path, tunable: FakeTunable, measured: list[bool]
) -> None:
    tune(tmp_path)
    count = len(measured)
    tunable.enabled = False
    tune(tmp_path)
    assert len(measured) == count
    assert tunable.enabled
    assert not tunable.tunes


@pytest.mark.parametrize("fault", ["missing", "refused"])
def test_a_file_that_torch_refuses_is_reported_and_made_again(
    tmp_path: Path,
    tunable: FakeTunable,
    measured: list[bool],
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tune(tmp_path)
    (path,) = tmp_path.glob("gemm-*.library.csv")
    if fault == "missing":
        path.unlink()
    else:
        tunable.accepts = False
    count = len(measured)
    with caplog.at_level(logging.WARNING):
        tune(tmp_path)
    assert len(measured) == 2 * count
    assert path.name in caplog.text
    assert path.is_file()


def test_nothing_of_it_is_touched_on_nvidia(
    tmp_path: Path, tunable: FakeTunable, measured: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    tune(tmp_path)
    assert not tunable.enabled
    assert not list(tmp_path.glob("*.csv"))
