"""The CPU tuner takes the fastest plan, keeps it, and no plan changes a result."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.kernels import native
from headrace.kernels.tuning import cpu_tuner
from headrace.kernels.tuning.cpu_tuner import CpuLinearTuner, LinearPlan, LinearShape
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.operations import GGUFBlocks, WeightPart

SHAPE = LinearShape("q4_1", 96, 64, False)
DEFAULT = LinearPlan(4, 96, True, True)


class TimedProgram:
    """Has the extension's face; a product takes as long as ``seconds`` says of its plan."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: Any, most_rows: int = 64) -> None:
        self.now = 0.0
        self.runs = 0
        self.plans: dict[int, LinearPlan] = {}
        self._seconds = seconds
        self._most_rows = most_rows
        monkeypatch.setattr(cpu_tuner.time, "perf_counter", lambda: self.now)

    def linear_shapes(self) -> list[tuple[str, int, int, bool]]:
        return [tuple(SHAPE)]

    def most_rows(self, _shape: LinearShape) -> int:
        return self._most_rows

    def has_rows(self, _format: str, rows: int) -> bool:
        return rows in (1, 2, 4, 6)

    def plan(self, _shape: LinearShape, rows: int) -> LinearPlan:
        return self.plans.get(rows, DEFAULT)

    def set_plan(self, _shape: LinearShape, rows: int, plan: LinearPlan) -> None:
        self.plans[rows] = plan

    def run_linears(self, _pool: Any, _shape: LinearShape, rows: int, calls: int) -> int:
        self.runs += 1
        self.now += calls * self._seconds(rows, self.plans.get(rows, DEFAULT))
        return calls


def tuner(directory: Path | None, threads: int = 2) -> CpuLinearTuner:
    pool = native.extension().ThreadPool(threads)
    return CpuLinearTuner(pool, native.choose_instruction_set(), directory)


def nothing() -> None:
    pass


def test_the_fastest_plan_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {4: DEFAULT._replace(most_rows=2), 64: DEFAULT._replace(most_rows=6, chunk_rows=48)}

    def seconds(rows: int, plan: LinearPlan) -> float:
        best = wanted.get(rows, DEFAULT)
        apart = sum(one != other for one, other in zip(plan, best, strict=True))
        return 1e-4 * (1 + 0.1 * apart)

    program = TimedProgram(monkeypatch, seconds)
    tuner(None).tune(program, nothing)
    assert program.plans == {rows: wanted.get(rows, DEFAULT) for rows in (1, 2, 4, 8, 16, 32, 64)}


def test_a_gain_within_the_noise_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = itertools.cycle([1.0, 1.02, 0.99, 1.01, 0.98])
    program = TimedProgram(monkeypatch, lambda *_: 1e-4 * next(noise))
    tuner(None).tune(program, nothing)
    assert set(program.plans.values()) == {DEFAULT}


def test_a_gain_that_does_not_come_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = DEFAULT._replace(most_rows=2)
    runs = itertools.count()

    def seconds(_rows: int, plan: LinearPlan) -> float:
        return 1e-4 * (0.5 if plan == other and next(runs) < 3 else 1.0)

    program = TimedProgram(monkeypatch, seconds, most_rows=4)
    tuner(None).tune(program, nothing)
    assert program.plans[4] == DEFAULT


def test_a_second_start_measures_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def seconds(_rows: int, plan: LinearPlan) -> float:
        return 1e-4 if plan.most_rows == 2 else 2e-4

    first = TimedProgram(monkeypatch, seconds)
    tuner(tmp_path).tune(first, nothing)
    second = TimedProgram(monkeypatch, seconds)
    tuner(tmp_path).tune(second, nothing)
    assert second.runs == 0
    assert second.plans == first.plans


@pytest.mark.parametrize("damage", ["corrupt", "format", "threads"])
def test_a_table_that_does_not_hold_is_reported_and_measured_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    program = TimedProgram(monkeypatch, lambda *_: 1e-4)
    tuner(tmp_path).tune(program, nothing)
    (path,) = tmp_path.iterdir()
    content = path.read_text()
    if damage == "corrupt":
        path.write_text(content[:-20])
    elif damage == "format":
        path.write_text(content.replace('"format": 1', '"format": 0', 1))
    else:
        path.write_text(content.replace('"threads": 2', '"threads": 3'))
    before = program.runs
    tuner(tmp_path).tune(program, nothing)
    assert program.runs > before
    assert f"tuning again: {path}" in caplog.text
    assert path.read_text() == content


def test_a_directory_that_cannot_be_written_costs_the_table_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    program = TimedProgram(monkeypatch, lambda *_: 1e-4)
    tuner(tmp_path / "file").tune(program, nothing)
    assert program.plans
    assert "not kept" in caplog.text


@pytest.mark.parametrize("isa", native.instruction_sets())
@pytest.mark.parametrize("kind", ["bfloat16", "float32", "q4_0", "q4_1", "q8_0"])
@pytest.mark.parametrize("gated", [False, True])
def test_no_plan_changes_a_bit(isa: str, kind: str, gated: bool) -> None:
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    backend = NativeCpuBackend(dtype, threads=2, instruction_set=isa)
    matrix = backend.operations.pack_linear([weights(kind)], None)
    rows = 203
    x = torch.randn(rows, 96).to(dtype)
    x[::5, 7] *= 50  # outliers, where a block format takes them apart
    out = torch.empty(rows, 64 if gated else 128, dtype=dtype)
    extension = native.extension()
    program = extension.Program(isa)
    program.linear(x, matrix.handle, None, out, sampled=False, gated=gated)
    program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
    pool = extension.ThreadPool(2)
    (shape,) = program.linear_shapes()
    assert shape == (kind, 128, 96, gated)
    for count in (1, 5, 32, rows):
        expected = None
        plans = itertools.product(
            [size for size in range(1, 13) if program.has_rows(kind, size)],
            (1, 7, 48, 96),
            (True, False),
            (True, False),
        )
        for plan in plans:
            program.set_plan(shape, count, plan)
            assert program.plan(shape, count) == plan
            out.fill_(float("nan"))
            program.run(pool, count, 1, 1)
            if expected is None:
                expected = out.clone()
            assert torch.equal(out[:count], expected[:count])
            assert out[count:].isnan().all()


def weights(kind: str) -> WeightPart:
    """[128, 96] in that format."""
    if kind in ("bfloat16", "float32"):
        return torch.randn(128, 96)
    halves, quants = {"q4_0": (1, 16), "q4_1": (2, 16), "q8_0": (1, 32)}[kind]
    blocks = torch.randint(0, 256, (128, 3, 2 * halves + quants), dtype=torch.uint8)
    scales = torch.rand(128, 3, halves).to(torch.float16)
    blocks[:, :, : 2 * halves] = scales.view(torch.uint8)
    return GGUFBlocks(blocks.view(128, -1), kind.upper(), (128, 96))


def test_plans_that_no_kernel_can_follow_are_refused() -> None:
    backend = NativeCpuBackend(torch.float32, threads=1)
    matrix = backend.operations.pack_linear([torch.randn(32, 32)], None)
    program = native.extension().Program(backend.instruction_set)
    program.linear(torch.zeros(4, 32), matrix.handle, None, torch.zeros(4, 32), sampled=False)
    shape = ("float32", 32, 32, False)
    with pytest.raises(ValueError, match="no kernel computes 5 rows"):
        program.set_plan(shape, 1, (5, 96, True, True))
    for chunk_rows in (0, 97):
        with pytest.raises(ValueError, match=rf"chunk_rows must be in \[1, 96\], not {chunk_rows}"):
            program.set_plan(shape, 1, (1, chunk_rows, True, True))
    with pytest.raises(ValueError, match="no linear has this shape"):
        program.set_plan(("float32", 32, 64, False), 1, (1, 96, True, True))
    pool = native.extension().ThreadPool(1)
    with pytest.raises(ValueError, match="scratch"):
        program.run_linears(pool, shape, 1, 1)
    program.set_scratch(torch.empty(program.scratch_bytes, dtype=torch.uint8))
    assert program.run_linears(pool, shape, 4, 9) == 1
    with pytest.raises(ValueError, match="rows"):
        program.run_linears(pool, shape, 5, 1)
