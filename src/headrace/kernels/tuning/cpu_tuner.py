"""``CpuLinearTuner``: how a CPU computes each linear at each number of rows, by measurement.

What is chosen: how many rows a pass over a tile of weights serves, how many meet a tile before the
next, whether workers share tiles or rows, and whether each packs the activations for itself. No
choice changes a bit of any result. The idea of choosing by measurement and keeping the result is
PyTorch's TunableOp.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from headrace.hardware.processor import processor
from headrace.kernels import native
from headrace.kernels.tuning import table_file

ROW_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""Measured numbers of rows: one for each plan that the extension keeps of a shape."""

_FORMAT = 1
_MOST_ROWS_A_PASS = 12
_CHUNKS = (24, 48)
_ROUNDS = 3
_SECONDS_EACH = 0.002
_MOST_CALLS = 32
_TOO_LONG = 0.01
"""A single product of so many seconds gains nothing that its measurement would be worth."""

_LEAST_GAIN = 0.04
"""Share of the time that another plan must save twice: a busy machine seldom errs so far twice."""

_logger = logging.getLogger(__name__)


class LinearShape(NamedTuple):
    """What a plan depends on beside the number of rows.

    Attributes:
        format: Of the weights: ``bfloat16``, ``q4_1``, ….
        n: Outputs, those of gate and up together.
        k: Inputs.
        gated: Whether gate, up and SiLU are one product.
    """

    format: str
    n: int
    k: int
    gated: bool


class LinearPlan(NamedTuple):
    """See ``LinearPlan`` of ``kernels/native/kernel_table.hpp``."""

    most_rows: int
    chunk_rows: int
    split_by_rows: bool
    packs_privately: bool


class TunedLinear(msgspec.Struct, frozen=True, kw_only=True):
    """The choice for one shape and number of rows; times in microseconds a product.

    Attributes:
        default_microseconds: Of the plan that is taken where nothing is measured.
    """

    shape: LinearShape
    rows: int
    plan: LinearPlan
    microseconds: float
    default_microseconds: float

    def label(self) -> str:
        """The plan in words."""
        split = "rows shared" if self.plan.split_by_rows else "tiles shared"
        packing = "" if self.plan.packs_privately else ", packed together"
        return f"{self.plan.most_rows} rows of {self.plan.chunk_rows}, {split}{packing}"


class Validators(msgspec.Struct, frozen=True, kw_only=True):
    """What must be equal for results to hold."""

    processor: str
    instruction_set: str
    threads: int
    extension: str


class CpuTuningTable(msgspec.Struct, kw_only=True):
    """Results of every model that this machine has served with so many threads."""

    format: int = _FORMAT
    validators: Validators
    linears: list[TunedLinear]


class CpuLinearTuner:
    """Plans for one thread pool.

    Args:
        pool: The extension's thread pool.
        instruction_set: Whose kernels compute.
        directory: Where the table is kept; ``None``: nothing is read or written.
    """

    def __init__(self, pool: Any, instruction_set: str, directory: Path | None) -> None:
        self._pool = pool
        self._validators = Validators(
            processor=processor(),
            instruction_set=instruction_set,
            threads=pool.size,
            extension=_extension_digest(),
        )
        name = f"cpu-linears-{instruction_set}-{pool.size}-threads.json"
        self._path = None if directory is None else directory / name
        self._results: dict[tuple[LinearShape, int], TunedLinear] | None = None
        self._used: dict[tuple[LinearShape, int], TunedLinear] = {}

    @property
    def results(self) -> list[TunedLinear]:
        """What was chosen for the programs so far."""
        return list(self._used.values())

    def tune(self, program: Any, fill_inputs: Callable[[], None]) -> None:
        """Give every linear of a recorded ``program`` its plans: known ones, or measured here.

        Args:
            fill_inputs: Called before the first measurement: puts numbers into what the linears
                read, since zeros are packed faster.
        """
        if self._results is None:
            self._results = {(one.shape, one.rows): one for one in self._load()}
        wanted = [
            (LinearShape(*shape), rows)
            for shape in program.linear_shapes()
            for rows in _row_counts(program.most_rows(shape))
        ]
        missing = [key for key in wanted if key not in self._results]
        if missing:
            fill_inputs()
            started = time.perf_counter()
            for shape, rows in missing:
                self._results[shape, rows] = self._measure(program, shape, rows)
            seconds = time.perf_counter() - started
            _logger.info("planned %d linears in %.1f s", len(missing), seconds)
            if self._path is not None:
                linears = list(self._results.values())
                table = CpuTuningTable(validators=self._validators, linears=linears)
                table_file.save(self._path, table)
        for shape, rows in wanted:
            chosen = self._used[shape, rows] = self._results[shape, rows]
            program.set_plan(shape, rows, chosen.plan)

    def _load(self) -> list[TunedLinear]:
        if self._path is None:
            return []
        try:
            table = table_file.load(self._path, CpuTuningTable, _FORMAT, self._validators)
        except table_file.StaleTable as reason:
            _logger.warning("tuning again: %s", reason)
            return []
        return [] if table is None else table.linears

    def _measure(self, program: Any, shape: LinearShape, rows: int) -> TunedLinear:
        default = LinearPlan(*program.plan(shape, rows))
        timer = _Timer(self._pool, program, shape, rows)
        best, times = default, {default: timer.first_seconds}
        if timer.first_seconds < _TOO_LONG:
            for candidates in _stages(program, shape, rows):
                measured = timer.seconds([best, *candidates(best)])
                times |= measured
                best = min(measured, key=lambda plan: measured[plan])
            again = timer.seconds([default, best])
            if any(_gain(one, default, best) < _LEAST_GAIN for one in (times, again)):
                best = default
            times |= again
        return TunedLinear(
            shape=shape,
            rows=rows,
            plan=best,
            microseconds=round(1e6 * times[best], 2),
            default_microseconds=round(1e6 * times[default], 2),
        )


class _Timer:
    """Times products of one shape, of one layer's weights after another's."""

    def __init__(self, pool: Any, program: Any, shape: LinearShape, rows: int) -> None:
        self._pool = pool
        self._program = program
        self._shape = shape
        self._rows = rows
        self._once(1)
        self.first_seconds = self._once(1)
        """Of one product by the plan that the program has."""
        self._calls = max(1, min(_MOST_CALLS, int(_SECONDS_EACH / self.first_seconds)))

    def seconds(self, plans: list[LinearPlan]) -> dict[LinearPlan, float]:
        """Of one product by each plan: the least of several rounds, in turn."""
        best: dict[LinearPlan, float] = {}
        for _ in range(_ROUNDS):
            for plan in dict.fromkeys(plans):
                self._program.set_plan(self._shape, self._rows, plan)
                best[plan] = min(self._once(self._calls), best.get(plan, float("inf")))
        return best

    def _once(self, calls: int) -> float:
        started = time.perf_counter()
        done: int = self._program.run_linears(self._pool, self._shape, self._rows, calls)
        return (time.perf_counter() - started) / done


def _stages(
    program: Any, shape: LinearShape, rows: int
) -> Iterator[Callable[[LinearPlan], list[LinearPlan]]]:
    """What to vary of the best plan so far, one thing after the other."""
    sizes = [
        size for size in range(1, _MOST_ROWS_A_PASS + 1) if program.has_rows(shape.format, size)
    ]
    yield lambda best: [
        best._replace(most_rows=size)
        for size in sizes
        if _passes(rows, size) != _passes(rows, best.most_rows)
    ]
    yield lambda best: [best._replace(chunk_rows=chunk) for chunk in _CHUNKS if chunk < 2 * rows]
    yield lambda best: [best._replace(split_by_rows=False)] if rows > best.chunk_rows else []
    yield lambda best: [best._replace(packs_privately=False)] if rows <= best.most_rows else []


def _passes(rows: int, most: int) -> int:
    """Passes over a tile; the rows are dealt to them as equally as can be."""
    return -(-rows // most)


def _row_counts(most: int) -> Iterator[int]:
    """Numbers of rows to measure where there are buffers for ``most``."""
    for rows in ROW_COUNTS:
        yield min(rows, most)
        if rows >= most:
            return


def _gain(times: dict[LinearPlan, float], default: LinearPlan, plan: LinearPlan) -> float:
    return 1.0 - times[plan] / times[default]


def _extension_digest() -> str:
    """Kernels of another build may want other plans."""
    return hashlib.sha256(Path(str(native.extension().__file__)).read_bytes()).hexdigest()[:12]
