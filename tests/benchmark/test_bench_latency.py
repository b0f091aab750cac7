"""``headrace bench latency``: what it times, what it writes, what it refuses."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace.benchmark.latency.cases import Case, grid, named_cases
from headrace.benchmark.latency.engine import EngineOptions
from headrace.benchmark.latency.generation import Times, prefill_steps
from headrace.benchmark.latency.sweep import Repeats, measure_cases
from headrace.benchmark.measured_device import MeasuredDevice
from headrace.benchmark.record import load_record
from headrace.cli.main import main
from headrace.link.errors import ConfigurationError


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", "latency", *arguments])
    return int(end.value.code or 0)


def test_the_defaults_are_those_of_the_published_comparison() -> None:
    from headrace.cli.benchmarks.latency import command

    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert defaults["contexts"] == (2048,)
    assert defaults["decode_lengths"] == (128,)
    assert defaults["batches"] == (1, 2, 4, 8, 16, 32, 64)
    assert (defaults["warmups"], defaults["runs"]) == (2, 10)


def test_grid_times_what_does_not_depend_on_the_decode_length_once() -> None:
    cases = grid([1, 8], [128], [16, 64])
    assert [(case.batch, case.decode_length, case.prefill) for case in cases] == [
        (1, 16, True),
        (1, 64, False),
        (8, 16, True),
        (8, 64, False),
    ]
    assert cases[0].length == 128 + 136
    assert Case(1, 128, decode_length=512).length == 128 + 513


def test_named_cases() -> None:
    assert named_cases("1x128,32x2048", "8x1024") == [
        Case(8, 1024, prefill=True),
        Case(1, 128, decode=True),
        Case(32, 2048, decode=True),
    ]
    for wrong in ("8", "0x8", "8x0", "axb"):
        with pytest.raises(ConfigurationError, match="--decode"):
            named_cases(wrong, "")


@pytest.mark.parametrize(("batch", "context", "budget"), [(3, 5, 4), (2, 8, 16), (1, 9, 4)])
def test_prefill_steps_cover_each_prompt_in_order_within_the_budget(batch, context, budget):
    prompts = np.arange(batch * context, dtype=np.int32).reshape(batch, context)
    steps = prefill_steps(prompts, budget)
    sizes = [sum(len(entry.token_ids) for entry in step) for step in steps]
    assert len(steps) == -(-batch * context // budget)
    assert max(sizes) <= budget
    for row in range(batch):
        entries = [entry for step in steps for entry in step if entry.row == row]
        assert np.concatenate([entry.token_ids for entry in entries]).tolist() == (
            prompts[row].tolist()
        )
        assert [entry.samples for entry in entries] == [False] * (len(entries) - 1) + [True]


def test_weights_stay_packed_where_the_engine_would_leave_them_so() -> None:
    assert EngineOptions().packs
    assert not EngineOptions(dtype="bfloat16").packs
    assert EngineOptions(dtype="bfloat16", packed_weights=True).packs
    assert not EngineOptions(packed_weights=False).packs
    assert not EngineOptions(random_weights=True, packed_weights=True).packs


class StubGenerator:
    """Counts what it is asked for; a generation takes a millisecond."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def prepare(self, batch: int, length: int) -> None:
        pass

    def generate(self, batch: int, context: int, new_tokens: int) -> Times:
        self.asked.append((batch, context, new_tokens))
        time.sleep(1e-3)
        return Times(1e-3 * new_tokens, 2e-3 * new_tokens)


@pytest.mark.parametrize(("settle", "fewest"), [(0.0, 3), (0.1, 30)])
def test_warm_ups_go_on_until_the_device_has_settled(settle: float, fewest: int) -> None:
    generator, told = StubGenerator(), []
    engine = SimpleNamespace(
        generator=generator, weights="bf16", kv="bf16", measured=MeasuredDevice(torch.device("cpu"))
    )
    repeats = Repeats(warmups=3, settle_seconds=settle, prefill=2, decode=1)
    cases = [Case(4, 16, prefill=True)]
    rows = list(measure_cases(engine, cases, repeats, told.append))
    assert rows[0].samples == [2.0, 2.0]
    assert len(generator.asked) >= fewest + 2
    if not settle:
        assert len(generator.asked) == 5
    assert told == ["4 × 16 tokens"] * repeats.of(cases[0])


def test_a_run_is_shown_and_recorded_with_every_sample(tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["smollm2-135m", "--random-weights", "--batches", "1,2", "--sequence-length", "20"]
    arguments += [
        "--decode-length",
        "4",
        "--warmups",
        "0",
        "--settle",
        "0",
        "--runs",
        "1",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["headrace", "bench", "latency", *arguments])
    assert bench(*arguments, "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert path.stem.endswith("-latency-smollm2-135m")
    assert str(path) in shown.replace("\n", "")
    record = load_record(path)
    assert record.command == " ".join(["headrace bench latency", *arguments])
    assert (record.system, record.model, record.seed) == ("headrace", "smollm2-135m", 0)
    assert record.system_version
    metrics = ("prefill_ms", "decode_step_ms", "decode_total_ms")
    for metric in metrics:
        rows = {row.batch: row for row in record.rows if row.metric == metric}
        assert set(rows) == {1, 2}
        assert all(len(row.samples) == 1 and row.value > 0 for row in rows.values())
        assert all(row.context == 20 and row.kv == "bf16" for row in rows.values())
    total = next(row for row in record.rows if row.metric == "decode_total_ms")
    assert total.new_tokens == 4
    assert record.rows[-1].metric == "peak_memory_gib"
    for word in ("average", "lowest", "highest", "p50", "p90", "p99", "tokens/s", *metrics):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sequence-length", "8100"), "make 8236; the model has 8192 positions"),
        (("--sequence-length", "8", "--decode-length", "9000"), "9001 new ones"),
        (("no/such/model/anywhere",), "no such file or directory"),
        (("llama3-8b",), "add --random-weights"),
        (("llama3-405b", "--random-weights"), "GiB are left on cpu"),
        (("--decode", "8*128"), "got `8*128`"),
        (("--batches", "1,x"), "'1,x' is not a list of positive integers"),
        (("--batches", "1", "--tuning", "library"), "--tuning library needs the Triton backend"),
        (("--batches", "1", "--device", "tpu"), "--device must be one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_status_2_and_no_record(tmp_path, capsys, arguments, says) -> None:
    assert bench(*arguments, "--out", str(tmp_path / "r.json")) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("headrace: ")
    assert says in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_a_decode_step_on_a_cpu_is_told_apart_by_operation(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    short = ("--warmups", "0", "--settle", "0", "--runs", "1", "--out", str(path))
    assert bench("--decode", "1x16", "--profile", "2x16", *short) == 0
    record = load_record(path)
    rows = {
        row.conditions["operation"]: row
        for row in record.rows
        if row.metric == "decode_operation_us"
    }
    linears = {"qkv", "output", "gate and up", "down", "head"}
    others = {"attention", "norms", "rotation, cache", "embedding", "Python and sampling"}
    assert set(rows) == linears | others
    assert all(row.batch == 2 and row.context == 16 for row in rows.values())
    assert all(rows[name].value > 0 for name in linears)
    floors = {name: row.conditions.get("floor_us") for name, row in rows.items()}
    assert {name for name, floor in floors.items() if floor is not None} == linears | {"attention"}
    # [3072, 576] against [576, 1536], in the same format.
    assert floors["gate and up"] == pytest.approx(2 * float(str(floors["down"])), rel=0.01)
    assert next(row.value for row in record.rows if row.metric == "read_rate") > 0


def test_a_profile_is_refused_where_nothing_can_tell_operations_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = ("--decode", "1x16", "--profile", "1x16", "--out", str(tmp_path))
    assert bench("--backend", "torch", *case) == 2
    assert "--profile needs a GPU or --backend native: torch runs on" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
