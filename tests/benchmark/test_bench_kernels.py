"""``headrace bench gemm|attention|kernels``: floors by hand, every kernel timed, the record."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.benchmark.kernels.workbench import Workbench
from headrace.benchmark.record import load_record
from headrace.checkpoint.shapes import shape
from headrace.cli.main import main
from headrace.kernels.attention.cases import attention_case
from headrace.kernels.linear.cases import linear_cases
from headrace.modeling.backends.choose import choose_backend

SHAPE = shape("llama3-8b")


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", *arguments])
    return int(end.value.code or 0)


def test_linears_of_an_8b_step_read_fifteen_gigabytes() -> None:
    cases = {case.kernel: case for case in linear_cases(SHAPE, 1)}
    layer = sum(case.num_bytes for name, case in cases.items() if name != "head")
    assert 32 * layer + cases["head"].num_bytes == pytest.approx(15.0e9, rel=0.01)
    assert cases["down"].operations == 2 * 4096 * 14336
    assert cases["qkv"].num_bytes == 2 * (6144 * 4096 + 4096 + 6144)


def test_attention_reads_each_page_once_and_scores_below_the_diagonal() -> None:
    decode = attention_case(SHAPE, 32, 1, 2048)
    assert decode.num_bytes == 2 * (32 * 2048 * 2 * 1024 + 32 * 2 * 4096)
    assert decode.operations == 4 * 32 * 2048 * 4096
    prompt = attention_case(SHAPE, 1, 4, 4)
    assert prompt.operations == 4 * (1 + 2 + 3 + 4) * 4096


def test_the_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    case = attention_case(SHAPE, 1, 1, 128)
    assert case.floor_seconds(1e9, 1e30) == pytest.approx(case.num_bytes / 1e9)
    assert case.floor_seconds(1e30, 1e9) == pytest.approx(case.operations / 1e9)


def test_every_kernel_is_timed_against_its_floor(tmp_path: Path, capsys) -> None:
    path = tmp_path / "k.json"
    arguments = ["kernels", "--tokens", "2", "--context", "32", "--runs", "2", "--threads", "1"]
    assert bench(*arguments, "--out", str(path)) == 0
    shown = capsys.readouterr().out
    record = load_record(path)
    times = {row.conditions["kernel"]: row for row in record.rows if row.metric == "kernel_us"}
    floors = {row.conditions["kernel"]: row for row in record.rows if row.metric == "floor_us"}
    assert set(times) == set(floors)
    assert set(times) == {
        "embed", "add_rms_norm", "rotary_and_cache", "silu_mul", "qkv", "output", "gate_up_silu",
        "down", "head", "attention",
    }  # fmt: skip
    assert all(len(row.samples) == 2 and row.value > 0 for row in times.values())
    # No product of cold weights runs at many times the memory's speed.
    assert all(times[name].value > 0.2 * floors[name].value for name in ("gate_up_silu", "head"))
    assert all(name in shown for name in times)
    rates = {row.metric: row.value for row in record.rows[-2:]}
    assert set(rates) == {"bandwidth_gb_per_s", "matmul_tflop_per_s"}
    assert min(rates.values()) > 0


def test_nothing_is_timed_on_zeros() -> None:
    choice = choose_backend("native", "cpu", "auto", head_dim=64, block_size=16, threads=1)
    bench = Workbench.build(choice, shape("smollm2-135m"), tokens=4, rows=3, length=40)
    buffers = bench.buffers
    for name in ("residual", "normed", "qkv", "attended", "delta", "gate_up", "activated", "final"):
        assert getattr(buffers, name).count_nonzero() > 0.99 * getattr(buffers, name).numel(), name
    for cache in bench.caches:
        # Rows of 48 slots: the pages of three sequences, wholly written.
        assert cache.keys.count_nonzero() > 0.99 * cache.keys.numel()
        assert cache.values.count_nonzero() > 0.99 * cache.values.numel()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gemm", "--model", "llama9-8b"), "no built-in shape is called `llama9-8b`"),
        (("attention", "--contexts", "9000"), "exceeds the 8192 positions of smollm2-135m"),
        (("attention", "--batches", "100000"), "100000 sequences of 2048 tokens need"),
        (("gemm", "--tokens", "none"), "'none' is not a list of positive integers"),
        (("kernels", "--backend", "cuda"), "--backend must be one of"),
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
