"""From settings to a warm engine: backend, weights, largest step, KV cache, in that order."""

from __future__ import annotations

import time

import msgspec
import structlog
import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.engine.core import Engine
from headrace.engine.limits import (
    GIB,
    GPU_RESERVE_BYTES,
    BatchLimits,
    CacheLimits,
    decide_batch,
    decide_cache,
    step_bytes,
)
from headrace.engine.memory_errors import check_weights_fit, explain_out_of_memory
from headrace.engine.settings import EngineSettings
from headrace.hardware.memory import PeakAllocation, available_bytes
from headrace.hardware.switches import is_on
from headrace.link.errors import ConfigurationError
from headrace.link.messages import EngineReady
from headrace.modeling.adapters.adapter_set import AdapterSet
from headrace.modeling.adapters.load import load_adapters, read_adapters
from headrace.modeling.backends.backend import Backend
from headrace.modeling.backends.choose import choose_backend
from headrace.modeling.decoder import Decoder
from headrace.modeling.loading.load import load_decoder, random_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits, cache_bytes_per_block
from headrace.scheduling.limits import SchedulerLimits
from headrace.scheduling.scheduler import Scheduler

_log = structlog.get_logger("headrace.engine")


def build_engine(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[Engine, EngineReady]:
    """Load and warm up ``checkpoint``, the model that ``settings`` names.

    Raises:
        ConfigurationError: model, device or a limit cannot be used; one line.
    """
    started = time.perf_counter()
    found = read_adapters(settings.lora_adapters, checkpoint.config, settings.max_lora_rank)
    choice = choose_backend(
        settings.backend,
        settings.device,
        settings.dtype,
        head_dim=checkpoint.config.head_dim,
        block_size=settings.block_size,
        threads=settings.threads,
        packed_weights=settings.packed_weights
        if settings.packed_weights is not None
        else settings.dtype == "auto",
        kv_cache_dtype=settings.kv_cache_dtype,
    )
    backend, on_gpu = choice.backend, choice.device.type != "cpu"
    _log.info("backend", name=backend.name, device=str(choice.device), why=choice.reason)
    batch = decide_batch(settings, checkpoint.config, on_gpu=on_gpu)
    check_weights_fit(checkpoint, choice.dtype_name, choice.device)
    decoder = _load(checkpoint, settings, backend, batch)
    adapters = load_adapters(found, checkpoint.config, backend.operations) if found else None
    loaded = time.perf_counter()
    _log.info(
        "weights loaded",
        gib=round(decoder.num_bytes / GIB, 2),
        seconds=round(loaded - started, 2),
    )
    if adapters is not None:
        mib = round(adapters.num_bytes / 2**20, 2)
        _log.info("adapters loaded", names=list(adapters.names), mib=mib)
    with explain_out_of_memory(batch):
        cache = _size_cache(checkpoint, settings, backend, decoder, batch, adapters)
        sized = time.perf_counter()
        _log.info("cache sized", seconds=round(sized - loaded, 2))
        runner = _runner(checkpoint, backend, decoder, batch, cache, adapters)
        if on_gpu:
            # Memory is taken and graphs are captured for this runner's own buffers.
            runner.warm_up()
            _capture_graphs(runner, choice.device)
        else:
            # Nothing is compiled for a shape: a token shows that every kernel runs here.
            runner.warm_up(most_tokens=1)
    warm = time.perf_counter()
    _log.info("warm", seconds=round(warm - sized, 2))
    scheduler = Scheduler(
        SchedulerLimits(
            token_budget=batch.token_budget,
            mixed_token_budget=batch.mixed_token_budget,
            max_running=batch.max_batch_size,
            max_waiting=settings.max_waiting,
            block_size=cache.block_size,
            num_blocks=cache.num_blocks,
            max_sequence_length=cache.max_total_tokens,
            ageing_seconds=settings.ageing_seconds,
            prefix_cache=settings.prefix_cache,
        )
    )
    engine = Engine(
        scheduler,
        runner,
        eos_token_ids=checkpoint.eos_token_ids,
        max_input_tokens=cache.max_input_tokens,
        depth=2 if on_gpu and is_on("OVERLAP") else 1,
        adapters=tuple(settings.lora_adapters),
    )
    ready = EngineReady(
        model_id=checkpoint.model_id,
        device=str(choice.device),
        backend=backend.name,
        dtype=choice.dtype_name,
        max_input_tokens=cache.max_input_tokens,
        max_total_tokens=cache.max_total_tokens,
        max_batch_total_tokens=cache.tokens,
        max_batch_size=batch.max_batch_size,
        block_size=cache.block_size,
        kv_blocks=cache.num_blocks,
        vocab_size=checkpoint.config.vocab_size,
        warmup_seconds=warm - started,
        adapters=list(settings.lora_adapters),
    )
    return engine, ready


def _capture_graphs(runner: ModelRunner, device: torch.device) -> None:
    started, before = time.perf_counter(), available_bytes(device)
    runner.capture_graphs()
    taken = before - available_bytes(device)
    seconds = round(time.perf_counter() - started, 2)
    _log.info("graphs captured", mib=taken // 2**20, seconds=seconds)


def _load(
    checkpoint: Checkpoint, settings: EngineSettings, backend: Backend, batch: BatchLimits
) -> Decoder:
    if settings.random_weights_seed is None:
        return load_decoder(checkpoint, backend.operations, batch.max_total_tokens)
    return random_decoder(
        checkpoint.config,
        settings.random_weights_seed,
        backend.operations,
        batch.max_total_tokens,
    )


def _runner(
    checkpoint: Checkpoint,
    backend: Backend,
    decoder: Decoder,
    batch: BatchLimits,
    cache: CacheLimits,
    adapters: AdapterSet | None,
) -> ModelRunner:
    limits = RunnerLimits(
        max_tokens=batch.token_budget,
        max_rows=batch.max_batch_size,
        max_length=cache.max_total_tokens,
        block_size=cache.block_size,
        num_blocks=cache.num_blocks,
    )
    return ModelRunner(checkpoint.config, decoder, backend, limits, adapters)


def _size_cache(
    checkpoint: Checkpoint,
    settings: EngineSettings,
    backend: Backend,
    decoder: Decoder,
    batch: BatchLimits,
    adapters: AdapterSet | None,
) -> CacheLimits:
    """Give the cache of what the largest step leaves."""
    per_block = cache_bytes_per_block(decoder, settings.block_size)
    device = backend.operations.device
    if device.type == "cpu":
        left = _left_by_arithmetic(checkpoint, settings, backend, batch)
    else:
        left = _left_by_measurement(checkpoint, settings, backend, decoder, batch, adapters)
    cache = decide_cache(
        settings,
        batch,
        bytes_per_block=per_block,
        available_bytes=left,
        on_gpu=device.type != "cpu",
    )
    _log.info(
        "kv cache",
        tokens=cache.tokens,
        gib=round(cache.num_blocks * per_block / GIB, 2),
        why=cache.reason,
    )
    _log.info(
        "limits",
        max_batch_size=batch.max_batch_size,
        token_budget=batch.token_budget,
        max_input_tokens=cache.max_input_tokens,
        max_total_tokens=cache.max_total_tokens,
    )
    return cache


def _left_by_arithmetic(
    checkpoint: Checkpoint, settings: EngineSettings, backend: Backend, batch: BatchLimits
) -> int:
    """What a CPU has left beside the buffers of steps, which take memory as they are first used.

    Not computed as on a GPU: 512 tokens take a small processor 2 s with 135 million parameters,
    minutes with 8 billion.

    Raises:
        ConfigurationError: the buffers alone exceed it; names the limits that they follow from.
    """
    operations = backend.operations
    needed = step_bytes(
        batch,
        checkpoint.config,
        block_size=settings.block_size,
        activation_bytes=operations.activation_dtype.itemsize,
        residual_bytes=operations.residual_dtype.itemsize,
    )
    free = available_bytes(operations.device)
    if needed >= free:
        raise ConfigurationError(
            f"the buffers of a step need {needed / GIB:.2f} GiB, {free / GIB:.2f} GiB are left: "
            f"lower --max-batch-prefill-tokens ({batch.token_budget}) or --max-batch-size "
            f"({batch.max_batch_size})"
        )
    return free - needed


def _left_by_measurement(
    checkpoint: Checkpoint,
    settings: EngineSettings,
    backend: Backend,
    decoder: Decoder,
    batch: BatchLimits,
    adapters: AdapterSet | None,
) -> int:
    """What a GPU has left beside the largest step, computed with a cache just large enough."""
    per_block = cache_bytes_per_block(decoder, settings.block_size)
    device = backend.operations.device
    smallest = decide_cache(
        msgspec.structs.replace(
            settings,
            max_total_tokens=None,
            max_input_tokens=None,
            kv_cache_bytes=None,
            max_batch_total_tokens=min(batch.token_budget, batch.max_total_tokens),
        ),
        batch,
        bytes_per_block=per_block,
        available_bytes=available_bytes(device),
        on_gpu=True,
    )
    probe = _runner(checkpoint, backend, decoder, batch, smallest, adapters)
    peak = PeakAllocation(device)
    probe.warm_up()
    # While the probe lives, its buffers are resident: what is left is left for the cache.
    left = available_bytes(device) + smallest.num_blocks * per_block - peak.transient_bytes()
    return left - GPU_RESERVE_BYTES
