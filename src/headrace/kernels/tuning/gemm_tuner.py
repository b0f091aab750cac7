"""``GemmTuner``: the way to compute each linear of a model at each number of tokens.

The idea of choosing by measurement and keeping the result is PyTorch's TunableOp.
"""

from __future__ import annotations

import hashlib
import logging
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

from headrace.kernels.linear import cublaslt
from headrace.kernels.linear.triton import LIBRARY, GemmChoice, GemmWorkspace
from headrace.kernels.triton_launch import GpuTraits
from headrace.kernels.tuning import table as tables
from headrace.kernels.tuning import tunable_library
from headrace.kernels.tuning.candidates import candidates, untuned
from headrace.kernels.tuning.measure import ChainTimer
from headrace.kernels.tuning.precompile import Job, precompile

TOKEN_COUNTS = (1, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256)
"""Measured numbers of tokens; others up to the last take the choice of the next larger."""

LARGE_TOKEN_COUNTS = (384, 512, 768, 1024, 2048, 4096, 8192)
"""Measured as well: what graphs of prompts and full steps run. Others leave it to the library."""

_VARIED = 2
"""So many of the library's fastest algorithms are measured in their variants too."""

_TOKENS_VARIED = range(96, 257)
"""For so many tokens: for fewer our own kernels win, for more the device's power decides."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinearShape:
    """What a choice depends on besides the number of tokens."""

    num_rows: int
    columns: int
    wide_output: bool


def token_counts(shape: LinearShape) -> tuple[int, ...]:
    """Measured numbers of tokens; only sampled tokens reach the head, whose output is wide."""
    return TOKEN_COUNTS if shape.wide_output else TOKEN_COUNTS + LARGE_TOKEN_COUNTS


class GemmTuner:
    """Choices for one model on one device, made final by ``tune``, ``use_library`` or ``freeze``.

    Args:
        device: Where the weights are.
        dtype: Of weights and activations.
        directory: Where tables are kept; ``None``: nothing is read or written.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        traits: GpuTraits,
        workspace: GemmWorkspace,
        directory: Path | None,
    ) -> None:
        self._device = device
        self._dtype = dtype
        self._traits = traits
        self._workspace = workspace
        self._directory = directory
        self._choices: dict[LinearShape, dict[int, GemmChoice]] = {}
        self.library_only = False
        self.frozen = False

    def choose(self, num_rows: int, columns: int, tokens: int, wide_output: bool) -> GemmChoice:
        """The way to compute a product of this shape."""
        if self.library_only:
            return LIBRARY
        tuned = self._choices.get(LinearShape(num_rows, columns, wide_output))
        if tuned is None:
            return untuned(num_rows, columns, tokens, self._traits)
        if tokens > TOKEN_COUNTS[-1]:
            return tuned.get(tokens, LIBRARY)
        return tuned[TOKEN_COUNTS[bisect_left(TOKEN_COUNTS, tokens)]]

    def use_library(self) -> None:
        """The vendor library for everything, for comparison."""
        self.library_only = self.frozen = True

    def freeze(self) -> None:
        """Choices as they are now; shapes without one take what needs no measurement."""
        self.frozen = True

    def tune(
        self,
        weights: dict[LinearShape, list[torch.Tensor]],
        meanwhile: Callable[[], Callable[[], None]] | None = None,
    ) -> list[tables.TunedShape]:
        """Choose for every shape, from the table on disk or by measuring on these weights.

        Args:
            weights: Every weight of each shape; they are only read.
            meanwhile: Begun where there is something to measure, beside the compilation of the
                candidates; what it returns is waited for before the first measurement.

        Returns:
            The results, for a report.
        """
        if self.frozen:
            raise RuntimeError("the GEMM tuner is frozen: shapes are chosen once, at warmup")
        validators = self._validators()
        path = self._path(list(weights))
        results = self._load(path, validators, set(weights))
        if results is None:
            started = time.perf_counter()
            with tunable_library.tuning(None if path is None else _beside(path)):
                results = self._measure(weights, meanwhile)
            _logger.info("tuned %d GEMMs in %.1f s", len(results), time.perf_counter() - started)
            if path is not None:
                tables.save(path, tables.TuningTable(validators=validators, shapes=results))
        for result in results:
            shape = LinearShape(result.num_rows, result.columns, result.wide_output)
            self._choices.setdefault(shape, {})[result.tokens] = result.choice
            self._workspace.reserve(result.choice, result.tokens, result.num_rows)
        self.frozen = True
        return results

    def _path(self, shapes: list[LinearShape]) -> Path | None:
        if self._directory is None:
            return None
        text = repr(sorted((s.num_rows, s.columns, s.wide_output) for s in shapes))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        validators = self._validators()
        device = "".join(c if c.isalnum() else "-" for c in validators.device.lower())
        name = f"gemm-{digest}-{device}-{validators.dtype}"
        return self._directory / f"{name}-tp{validators.tensor_parallel}-{validators.rank}.json"

    def _load(
        self, path: Path | None, validators: tables.Validators, shapes: set[LinearShape]
    ) -> list[tables.TunedShape] | None:
        if path is None:
            return None
        try:
            table = tables.load(path, validators)
        except tables.StaleTable as reason:
            _logger.warning("tuning again: %s", reason)
            return None
        if table is None:
            return None
        wanted = {(shape, tokens) for shape in shapes for tokens in token_counts(shape)}
        found = {
            (LinearShape(s.num_rows, s.columns, s.wide_output), s.tokens) for s in table.shapes
        }
        if wanted != found:
            _logger.warning("tuning again: %s does not list this model's shapes", path)
            return None
        if not tunable_library.read(_beside(path)):
            _logger.warning("tuning again: torch refuses %s", _beside(path))
            return None
        return table.shapes

    def _measure(
        self,
        weights: dict[LinearShape, list[torch.Tensor]],
        meanwhile: Callable[[], Callable[[], None]] | None,
    ) -> list[tables.TunedShape]:
        wait = None if meanwhile is None else meanwhile()
        listed = [
            (
                shape,
                tokens,
                candidates(shape.num_rows, shape.columns, tokens, self._traits, shape.wide_output),
            )
            for shape in weights
            for tokens in token_counts(shape)
        ]
        jobs = {
            _compiled_alike(shape, tokens, choice): Job(
                num_rows=shape.num_rows,
                columns=shape.columns,
                tokens=tokens,
                dtype=_name(self._dtype),
                out_dtype=_name(self._out_dtype(shape)),
                choice=choice,
            )
            for shape, tokens, choices in listed
            for choice in choices
            if choice.kind in ("gemv", "skinny", "hopper")
        }
        precompile(list(jobs.values()), self._device)
        if wait is not None:
            wait()
        for shape, tokens, choices in listed:
            for choice in choices:
                self._workspace.reserve(choice, tokens, shape.num_rows)
        results = []
        for shape, tokens, choices in listed:
            times = self._times(shape, tokens, choices, weights[shape])
            best = min(times, key=lambda choice: times[choice])
            results.append(
                tables.TunedShape(
                    num_rows=shape.num_rows,
                    columns=shape.columns,
                    tokens=tokens,
                    wide_output=shape.wide_output,
                    choice=best,
                    microseconds=round(times[best], 2),
                    library_microseconds=round(times.get(LIBRARY, tables.NOT_MEASURED), 2),
                )
            )
        return results

    def _times(
        self,
        shape: LinearShape,
        tokens: int,
        choices: list[GemmChoice],
        weights: list[torch.Tensor],
    ) -> dict[GemmChoice, float]:
        """Microseconds of every choice that can run; the library's is among them."""
        try:
            timer = ChainTimer(
                weights, tokens, self._out_dtype(shape), self._workspace, self._traits
            )
        except torch.cuda.OutOfMemoryError:
            _logger.warning("%d tokens do not fit beside the model: not tuned", tokens)
            return {LIBRARY: tables.NOT_MEASURED}
        times: dict[GemmChoice, float] = {}
        self._time(timer, [*choices, *timer.library_algorithms()], times)
        if tokens in _TOKENS_VARIED:
            algorithms = [choice for choice in times if choice.kind == "cublaslt"]
            for choice in sorted(algorithms, key=lambda choice: times[choice])[:_VARIED]:
                self._time(timer, timer.variants(choice), times)
        return times

    def _time(
        self, timer: ChainTimer, choices: list[GemmChoice], times: dict[GemmChoice, float]
    ) -> None:
        for choice in choices:
            if choice in times:
                continue
            try:
                times[choice] = timer.microseconds(choice)
            except RuntimeError as error:
                _logger.warning("%s cannot run here: %s", choice.label(), error)

    def _out_dtype(self, shape: LinearShape) -> torch.dtype:
        return torch.float32 if shape.wide_output else self._dtype

    def _validators(self) -> tables.Validators:
        listed = [
            choice
            for tokens in (*TOKEN_COUNTS, *LARGE_TOKEN_COUNTS)
            for choice in candidates(1 << 14, 1 << 14, tokens, self._traits)
        ]
        return tables.Validators(
            device=torch.cuda.get_device_name(self._device),
            dtype=_name(self._dtype),
            torch=str(torch.__version__),
            triton=triton.__version__,
            runtime=str(torch.version.hip or torch.version.cuda),
            library=_library_version(self._device),
            candidates=hashlib.sha256(repr((listed, _VARIED, _TOKENS_VARIED)).encode()).hexdigest()[
                :12
            ],
        )


def _compiled_alike(shape: LinearShape, tokens: int, choice: GemmChoice) -> object:
    """Equal for launches of one compiled kernel."""
    if choice.kind == "hopper":
        return choice
    return shape.columns, tokens % 16, shape.wide_output, choice


def _beside(path: Path) -> Path:
    """Where the library's own choices are kept, if it makes any."""
    return path.with_suffix(".library.csv")


def _library_version(device: torch.device) -> str:
    library = cublaslt.loaded(device)
    return "" if library is None else f"cublaslt {library.version}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
