"""The model that is timed: any checkpoint, or a built-in shape with random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headrace.benchmark.latency.cases import Case, check_lengths
from headrace.benchmark.latency.generation import BatchGenerator
from headrace.benchmark.measured_device import MeasuredDevice
from headrace.benchmark.measured_model import SHORT_DTYPES, architecture, weights_format
from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.sizes import stored_bytes, weight_bytes
from headrace.hardware.memory import available_bytes
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import BackendChoice, choose_backend
from headrace.modeling.loading.load import load_decoder, random_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits, cache_bytes_per_block

BLOCK_SIZE = 16
TUNINGS = ("auto", "library")
_GPU_TOKEN_BUDGET, _CPU_TOKEN_BUDGET = 8192, 512
_GPU_STEPS_IN_FLIGHT = 2
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the model is run.

    Attributes:
        model: Directory, GGUF file, hub id or built-in shape; ``None``: the built-in model.
        random_weights: Draw the weights from ``seed``; a built-in shape has no others.
        packed_weights: Compute with quantized weights as they are packed, where possible;
            ``None``: as the engine does, unless a ``dtype`` is named.
        tuning: ``auto``, or ``library`` for the vendor library's products alone (GPU only).
        max_tokens: Tokens of the largest step; ``None``: the engine's default for the device.
    """

    model: str | None = None
    random_weights: bool = False
    seed: int = 0
    backend: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    packed_weights: bool | None = None
    tuning: str = "auto"
    max_tokens: int | None = None

    @property
    def packs(self) -> bool:
        """Whether weights stay packed where that is possible."""
        if self.random_weights:
            return False
        return self.dtype == "auto" if self.packed_weights is None else self.packed_weights


@dataclass(frozen=True)
class MeasuredEngine:
    """A model ready to be timed, and what a record says of it.

    Attributes:
        config: The architecture.
        weights: Format of the weights that are computed with.
        kv: dtype of the KV cache.
        load_seconds: From nothing to weights in place.
        warm_seconds: Tuning, graph capture and buffers.
    """

    config: ModelConfig
    generator: BatchGenerator
    measured: MeasuredDevice
    backend: str
    weights: str
    kv: str
    load_seconds: float
    warm_seconds: float


def prepare_engine(options: EngineOptions, cases: Sequence[Case]) -> MeasuredEngine:
    """Load the model with buffers for exactly these cases, and warm it up.

    Raises:
        ConfigurationError: no such model, a case longer than its positions, a backend that cannot
            run here, or too little memory: one line.
    """
    config, checkpoint = architecture(options.model, random_weights=options.random_weights)
    check_lengths(cases, config)
    started = time.perf_counter()
    choice = choose_backend(
        options.backend,
        options.device,
        options.dtype,
        head_dim=config.head_dim,
        block_size=BLOCK_SIZE,
        threads=options.threads,
        packed_weights=options.packs,
    )
    _set_tuning(choice, options.tuning)
    on_gpu = choice.device.type == "cuda"
    budget = options.max_tokens or (_GPU_TOKEN_BUDGET if on_gpu else _CPU_TOKEN_BUDGET)
    limits = _limits(cases, budget)
    _check_weights_fit(config, checkpoint, choice, options)
    operations = choice.backend.operations
    if checkpoint is None or options.random_weights:
        decoder = random_decoder(config, options.seed, operations, limits.max_length)
    else:
        decoder = load_decoder(checkpoint, operations, limits.max_length)
    loaded = time.perf_counter()
    cache = limits.num_blocks * cache_bytes_per_block(decoder, BLOCK_SIZE)
    left = available_bytes(choice.device)
    if cache > left:
        raise ConfigurationError(
            f"the largest case needs {cache / _GIB:.2f} GiB of KV cache, {left / _GIB:.2f} GiB are "
            "left: ask for smaller batches or shorter sequences"
        )
    runner = ModelRunner(config, decoder, choice.backend, limits)
    if on_gpu:
        runner.warm_up()
        runner.capture_graphs()
        torch.cuda.synchronize(choice.device)
    warm = time.perf_counter()
    dtype = SHORT_DTYPES[choice.dtype_name]
    return MeasuredEngine(
        config=config,
        generator=BatchGenerator(runner, _GPU_STEPS_IN_FLIGHT if on_gpu else 1, options.seed),
        measured=MeasuredDevice(choice.device),
        backend=choice.backend.name,
        weights=weights_format(
            checkpoint, dtype, packed=options.packs and choice.backend.name == "native"
        ),
        kv=dtype,
        load_seconds=loaded - started,
        warm_seconds=warm - loaded,
    )


def _check_weights_fit(
    config: ModelConfig,
    checkpoint: Checkpoint | None,
    choice: BackendChoice,
    options: EngineOptions,
) -> None:
    if checkpoint is not None and options.packs and choice.backend.name == "native":
        needed = stored_bytes(config, checkpoint.tensors)
    else:
        needed = weight_bytes(config, choice.dtype_name)
    left = available_bytes(choice.device)
    if needed > left:
        raise ConfigurationError(
            f"the weights need {needed / _GIB:.2f} GiB, {left / _GIB:.2f} GiB are left on "
            f"{choice.device}"
        )


def _set_tuning(choice: BackendChoice, tuning: str) -> None:
    if tuning not in TUNINGS:
        raise ConfigurationError(f"--tuning must be one of {', '.join(TUNINGS)}, got `{tuning}`")
    if tuning == "auto":
        return
    if choice.backend.name != "triton":
        raise ConfigurationError(f"--tuning {tuning} needs the Triton backend on a GPU")
    # Only here: Triton is absent where torch was built for CPUs.
    from headrace.modeling.backends.triton_gpu import TritonBackend

    assert isinstance(choice.backend, TritonBackend)
    choice.backend.operations.tuner.use_library()


def _limits(cases: Sequence[Case], budget: int) -> RunnerLimits:
    rows = max(case.batch for case in cases)
    return RunnerLimits(
        max_tokens=max(budget, rows),
        max_rows=rows,
        max_length=max(case.length for case in cases),
        block_size=BLOCK_SIZE,
        num_blocks=max(case.batch * -(-case.length // BLOCK_SIZE) for case in cases),
    )
