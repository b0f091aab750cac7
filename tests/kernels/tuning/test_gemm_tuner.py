from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels.linear.triton import LIBRARY, GemmChoice, GemmWorkspace
from headrace.kernels.triton_launch import GpuTraits
from headrace.kernels.tuning import table as tables
from headrace.kernels.tuning.candidates import candidates
from headrace.kernels.tuning.gemm_tuner import (
    LARGE_TOKEN_COUNTS,
    TOKEN_COUNTS,
    GemmTuner,
    LinearShape,
    token_counts,
)
from headrace.kernels.tuning.measure import ChainTimer

H100 = GpuTraits(
    multiprocessors=132,
    shared_memory=232448,
    dependent_launch=True,
    wide_matrix_unit=True,
    warpgroup_kernels=True,
)
MI300X = GpuTraits(
    multiprocessors=304, shared_memory=65536, dependent_launch=False, wide_matrix_unit=False
)
VALIDATORS = tables.Validators(
    device="A card",
    dtype="bfloat16",
    torch="2",
    triton="3",
    runtime="12",
    candidates="abc",
    library="cublaslt 1",
)
WEIGHTS = {
    LinearShape(256, 1024, False): [torch.zeros(256, 1024)],
    LinearShape(500, 1024, True): [torch.zeros(500, 1024)],
}


class Measurements:
    """Stands in for the device: smaller K splits and larger tiles count as faster."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.broken: set[str] = set()
        self.library: list[GemmChoice] = []
        self.variants: dict[str, list[str]] = {}
        self.varied: list[str] = []

        def microseconds(timer: ChainTimer, choice: GemmChoice) -> float:
            self.count += 1
            if choice.kind in self.broken:
                raise RuntimeError("out of resource: shared memory")
            if choice.kind == "cublaslt":
                return 49.0 - int(choice.algorithm, 16)
            return 50.0 if choice.kind == "library" else 10.0 + choice.shares

        def variants(_: ChainTimer, choice: GemmChoice) -> list[GemmChoice]:
            self.varied.append(choice.algorithm)
            others = self.variants.get(choice.algorithm, [])
            return [GemmChoice(kind="cublaslt", algorithm=other) for other in others]

        monkeypatch.setattr(ChainTimer, "__init__", lambda *_: None)
        monkeypatch.setattr(ChainTimer, "variants", variants)
        monkeypatch.setattr(ChainTimer, "microseconds", microseconds)
        monkeypatch.setattr(ChainTimer, "library_algorithms", lambda _: self.library)
        monkeypatch.setattr("headrace.kernels.tuning.gemm_tuner.precompile", lambda *_: None)
        monkeypatch.setattr(GemmTuner, "_validators", lambda _: VALIDATORS)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> Measurements:
    return Measurements(monkeypatch)


TRAITS = GpuTraits(4, 232448, True, True)


def tuner(directory: Path | None) -> GemmTuner:
    device = torch.device("cpu")
    return GemmTuner(device, torch.bfloat16, TRAITS, GemmWorkspace(device), directory)


def table_file(directory: Path) -> Path:
    (path,) = directory.glob("gemm-*.json")
    return path


def test_second_start_reads_the_table_and_measures_nothing(
    tmp_path: Path, measurements: Measurements
) -> None:
    first = tuner(tmp_path)
    first.tune(WEIGHTS)
    assert measurements.count > len(WEIGHTS) * len(TOKEN_COUNTS)
    measured = measurements.count
    second = tuner(tmp_path)
    second.tune(WEIGHTS)
    assert measurements.count == measured
    for tokens in (1, 3, 8, 64):
        choice = first.choose(256, 1024, tokens, False)
        assert choice == second.choose(256, 1024, tokens, False)
        assert choice.kind == ("gemv" if tokens == 1 else "skinny")


def test_variants_of_the_library_s_fastest_algorithms_are_measured_too(
    measurements: Measurements,
) -> None:
    """Times fall with the algorithm's number: of 1 to 5 the last two are varied."""
    measurements.library = [
        GemmChoice(kind="cublaslt", algorithm=f"{number:02x}") for number in range(1, 6)
    ]
    measurements.variants = {"04": ["10", "05"], "01": ["20"]}
    tuned = tuner(None)
    tuned.tune(WEIGHTS)
    assert set(measurements.varied) == {"04", "05"}
    assert tuned.choose(256, 1024, 128, False).algorithm == "10"
    assert tuned.choose(256, 1024, 8192, False).algorithm == "05"
    assert tuned.choose(256, 1024, 64, False).kind == "skinny"


def test_frozen_tuner_refuses_to_tune(tmp_path: Path, measurements: Measurements) -> None:
    once = tuner(tmp_path)
    once.tune(WEIGHTS)
    with pytest.raises(RuntimeError, match="frozen"):
        once.tune(WEIGHTS)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"format": 1}', b"[]", b"\xff\xfe", b'{"validators": {}, "shapes": []}'],
)
def test_corrupt_table_is_reported_and_measured_again(
    tmp_path: Path, measurements: Measurements, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tuner(tmp_path).tune(WEIGHTS)
    path = table_file(tmp_path)
    path.write_bytes(content)
    before = measurements.count
    with caplog.at_level(logging.WARNING):
        tuner(tmp_path).tune(WEIGHTS)
    assert measurements.count > before
    assert "tuning again" in caplog.text
    assert path.name in caplog.text
    assert tables.load(path, VALIDATORS) is not None


@pytest.mark.parametrize("field", ["device", "torch", "candidates", "library", "rank"])
def test_table_measured_on_something_else_is_refused(
    tmp_path: Path, measurements: Measurements, field: str
) -> None:
    tuner(tmp_path).tune(WEIGHTS)
    path = table_file(tmp_path)
    changed = tables.load(path, VALIDATORS)
    assert changed is not None
    content = path.read_text().replace(
        f'"{field}": 0' if field == "rank" else f'"{field}": "',
        f'"{field}": 1' if field == "rank" else f'"{field}": "x',
        1,
    )
    path.write_text(content)
    with pytest.raises(tables.StaleTable, match=field):
        tables.load(path, VALIDATORS)


def test_table_of_another_model_is_not_used(tmp_path: Path, measurements: Measurements) -> None:
    tuner(tmp_path).tune(WEIGHTS)
    other = {LinearShape(64, 1024, False): [torch.zeros(64, 1024)]}
    before = measurements.count
    tuner(tmp_path).tune(other)
    assert measurements.count > before
    assert len(list(tmp_path.glob("gemm-*.json"))) == 2


def test_kernel_that_cannot_run_is_passed_over(tmp_path: Path, measurements: Measurements) -> None:
    measurements.broken = {"skinny", "gemv"}
    here = tuner(tmp_path)
    here.tune(WEIGHTS)
    assert here.choose(256, 1024, 1, False) == LIBRARY
    assert here.choose(256, 1024, 64, False) == LIBRARY


def test_another_algorithm_of_the_library_serves_its_own_number_of_tokens(
    tmp_path: Path, measurements: Measurements
) -> None:
    measurements.library = [GemmChoice(kind="cublaslt", algorithm=f"{n:0128x}") for n in (1, 3, 2)]
    for _ in range(2):
        here = tuner(tmp_path)
        here.tune(WEIGHTS)
        for tokens in LARGE_TOKEN_COUNTS:
            assert here.choose(256, 1024, tokens, False) == measurements.library[1]
        assert here.choose(256, 1024, 8191, False) == LIBRARY
        # The head is given sampled tokens alone, which are few.
        assert here.choose(500, 1024, 1024, True) == LIBRARY
    assert measurements.count == len(token_counts(LinearShape(256, 1024, False))) * 3 + sum(
        len(candidates(shape.num_rows, 1024, tokens, TRAITS)) for shape in WEIGHTS
        for tokens in token_counts(shape)
    ) + len(TOKEN_COUNTS) * 3  # fmt: skip


def test_what_does_not_fit_beside_the_model_is_left_to_the_library(
    tmp_path: Path, measurements: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(timer: ChainTimer, weights: object, tokens: int, *rest: object) -> None:
        if tokens >= 4096:
            raise torch.cuda.OutOfMemoryError

    measurements.library = [GemmChoice(kind="cublaslt", algorithm="01" * 64)]
    monkeypatch.setattr(ChainTimer, "__init__", refuse)
    for _ in range(2):
        here = tuner(tmp_path)
        here.tune(WEIGHTS)
        assert here.choose(256, 1024, 2048, False).kind == "cublaslt"
        assert here.choose(256, 1024, 4096, False) == LIBRARY


def test_library_serves_what_was_not_measured(measurements: Measurements) -> None:
    here = tuner(None)
    here.tune(WEIGHTS)
    assert here.choose(256, 1024, 257, False) == LIBRARY
    compared = tuner(None)
    compared.use_library()
    assert compared.choose(256, 1024, 1, False) == LIBRARY


@pytest.mark.parametrize("traits", [H100, MI300X])
@pytest.mark.parametrize("tokens", TOKEN_COUNTS)
@pytest.mark.parametrize(("rows", "columns"), [(6144, 4096), (4096, 14336), (128256, 2048)])
def test_candidates_start_with_the_library_and_fit_the_device(
    traits: GpuTraits, tokens: int, rows: int, columns: int
) -> None:
    choices = candidates(rows, columns, tokens, traits)
    assert choices[0] == LIBRARY
    assert len(set(choices)) == len(choices)
    assert len(choices) > 1 or tokens > 64
    clustered = [choice for choice in choices if choice.kind == "hopper"]
    assert bool(clustered) == (traits.warpgroup_kernels and tokens > 128)
    wide = candidates(rows, columns, tokens, traits, wide_output=True)
    assert wide == [choice for choice in choices if choice not in clustered]
    others = [choice for choice in choices[1:] if choice not in clustered]
    assert not traits.wide_matrix_unit or not others or tokens <= 64
    for choice in others:
        assert choice.kind == ("gemv" if tokens == 1 else "skinny")
        buffers = choice.stages if traits.wide_matrix_unit else choice.stages - 1
        pipeline = (choice.rows + choice.tokens) * choice.block_k * 2 * buffers
        assert choice.kind == "gemv" or pipeline <= traits.shared_memory
        assert traits.dependent_launch or choice.prefetch == 0
