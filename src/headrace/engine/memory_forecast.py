"""What serving a model will take of a device's memory, before a byte of it is loaded.

The same limits as the engine's own (``limits.py``) and the sizes of the buffers that it allocates
(``checkpoint.sizes``); what only a running engine can measure is stated as a part of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.sizes import (
    BYTES_PER_ITEM,
    kv_bytes_per_token,
    quantized_weight_bytes,
)
from headrace.checkpoint.weight_formats import WEIGHT_FORMATS
from headrace.engine.limits import (
    GPU_RESERVE_BYTES,
    BatchLimits,
    CacheLimits,
    decide_batch,
    decide_cache,
    step_bytes,
)
from headrace.engine.settings import EngineSettings
from headrace.kernels.sampling.row_parameters import COLUMNS, MOST_ADJUSTMENTS
from headrace.link.errors import ConfigurationError
from headrace.link.sampling import MOST_TOP_TOKENS

CPU_SAMPLING_COPIES = 2
"""Arrays as large as the logits of all rows that sampling with every filter on holds at its peak on
a CPU with native kernels: altered logits, and what is kept of them."""

_NEAR_CANDIDATES, _GREEDY_SLICES = 4096, 64
"""Of ``DeviceSampler`` and ``MostLikely``, which this module cannot import: they need Triton."""

GPU_CONTEXT_BYTES = 800 * 2**20
"""The driver's context, its own reserve and loaded kernels on a GPU."""

ENGINE_PROCESS_BYTES = 271 * 2**20
"""Resident memory of an engine's process beside what is counted here (CPU): Python, libraries, the
tokenizer, threads, and what the C library keeps."""

KV_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp8": "fp8", "int8": "int8"}
"""Names of cache types to dtypes."""


@dataclass(frozen=True, slots=True)
class ForecastPart:
    """One kind of memory: its name, its bytes on one device, and the arithmetic for people."""

    name: str
    bytes: int
    how: str


@dataclass(frozen=True, slots=True)
class ServingForecast:
    """What one of ``shards`` devices holds.

    Attributes:
        parts: All but the KV cache.
        batch: The largest step.
        token_bytes: Of one token's keys and values on one device.
        cache: What the engine would decide; ``None``: it would refuse to start.
        refusal: Why, then.
    """

    shards: int
    device_bytes: int
    parts: tuple[ForecastPart, ...]
    batch: BatchLimits
    token_bytes: int
    cache: CacheLimits | None
    refusal: str | None

    @property
    def fixed_bytes(self) -> int:
        """All but the KV cache."""
        return sum(part.bytes for part in self.parts)

    @property
    def left_bytes(self) -> int:
        """What is left for the KV cache; below zero where it does not even hold the rest."""
        return self.device_bytes - self.fixed_bytes

    @property
    def cache_bytes(self) -> int:
        """Of the cache as decided."""
        return 0 if self.cache is None else self.cache.tokens * self.token_bytes

    @property
    def total_bytes(self) -> int:
        """Everything."""
        return self.fixed_bytes + self.cache_bytes


def forecast_serving(
    config: ModelConfig,
    settings: EngineSettings,
    *,
    device_bytes: int,
    on_gpu: bool,
    weights: str = "bf16",
    stored_weight_bytes: int | None = None,
    kv: str = "bf16",
    shards: int = 1,
) -> ServingForecast:
    """Predict the memory of serving.

    Args:
        config: The model.
        settings: Limits that were asked for; the model's name in it is not looked at.
        device_bytes: Memory that one device offers to this process.
        on_gpu: Else the CPU.
        weights: A key of ``WEIGHT_FORMATS``.
        stored_weight_bytes: Of weights that are computed with as their file packs them; they
            replace what ``weights`` says.
        kv: A key of ``KV_DTYPES``.
        shards: Devices that share one model by tensor parallelism: projections, head and cache are
            split, the rest is on each.

    Raises:
        ConfigurationError: limits that make no sense, heads that cannot be split so.
    """
    if shards < 1 or config.num_kv_heads % shards:
        raise ConfigurationError(
            f"{config.num_kv_heads} key-value heads cannot be split over {shards} devices"
        )
    batch = decide_batch(settings, config, on_gpu=on_gpu)
    token_bytes = kv_bytes_per_token(config, KV_DTYPES[kv]) // shards
    parts = _parts(config, settings, batch, on_gpu, weights, stored_weight_bytes, shards)
    left = device_bytes - sum(part.bytes for part in parts)
    cache, refusal = None, None
    try:
        cache = decide_cache(
            settings,
            batch,
            bytes_per_block=token_bytes * settings.block_size,
            available_bytes=left,
            on_gpu=on_gpu,
        )
    except ConfigurationError as error:
        refusal = str(error)
    return ServingForecast(shards, device_bytes, parts, batch, token_bytes, cache, refusal)


def _parts(
    config: ModelConfig,
    settings: EngineSettings,
    batch: BatchLimits,
    on_gpu: bool,
    weights: str,
    stored: int | None,
    shards: int,
) -> tuple[ForecastPart, ...]:
    rows = min(batch.max_batch_size, batch.token_budget)
    over = f", over {shards} devices" if shards > 1 else ""
    activation = BYTES_PER_ITEM["float32" if weights == "fp32" else "bfloat16"]
    residual = activation if on_gpu else BYTES_PER_ITEM["float32"]
    buffers = step_bytes(
        batch,
        config,
        block_size=settings.block_size,
        activation_bytes=activation,
        residual_bytes=residual,
    )
    rotary = batch.max_total_tokens * config.head_dim * 4
    parts = [
        _weights(config, weights, stored, shards, over),
        ForecastPart(
            "rotary table",
            rotary,
            f"{batch.max_total_tokens:,} positions × {config.head_dim} × 4 bytes",
        ),
        ForecastPart(
            "step buffers",
            buffers,
            f"{batch.token_budget:,} tokens between operations, logits of {rows:,} rows, "
            "block tables",
        ),
    ]
    parts.append(_sampling(config, batch, rows, on_gpu))
    if on_gpu:
        parts += [
            ForecastPart("reserve", GPU_RESERVE_BYTES, "captured graphs, holes in allocations"),
            ForecastPart("context", GPU_CONTEXT_BYTES, "driver and kernels"),
        ]
    else:
        parts.append(
            ForecastPart("process", ENGINE_PROCESS_BYTES, "Python and libraries of the engine")
        )
    return tuple(parts)


def _sampling(config: ModelConfig, batch: BatchLimits, rows: int, on_gpu: bool) -> ForecastPart:
    vocabulary = config.vocab_size
    if not on_gpu:
        total = CPU_SAMPLING_COPIES * rows * vocabulary * 4
        how = f"{CPU_SAMPLING_COPIES} × {rows:,} rows × {vocabulary:,} × 4 bytes, every filter on"
        return ForecastPart("sampling", total, how)
    total = sampler_bytes(batch.max_batch_size, vocabulary, batch.max_total_tokens)
    how = f"{batch.max_batch_size:,} rows × ({vocabulary:,} × 2 bytes of counts, and candidates)"
    return ForecastPart("sampling", total + 4 * batch.token_budget, how)


def sampler_bytes(rows: int, vocabulary: int, max_length: int) -> int:
    """Device memory of a GPU's sampler, beside a float32 a token of prompt log-probabilities."""
    most_top = min(MOST_TOP_TOKENS, vocabulary)
    a_row = 2 * vocabulary + 12 * MOST_ADJUSTMENTS + 12 * most_top + 8 * _NEAR_CANDIDATES
    a_row += 4 * COLUMNS + 8 * _GREEDY_SLICES + 4 * 3 + 8 + 1 + 4
    return rows * a_row + 2 * 4 * min(max_length, vocabulary)


def _weights(
    config: ModelConfig, weights: str, stored: int | None, shards: int, over: str
) -> ForecastPart:
    if stored is not None:
        return ForecastPart("weights", ceil(stored / shards), f"as the file packs them{over}")
    form = WEIGHT_FORMATS[weights]
    rest = "float32" if weights == "fp32" else "bfloat16"
    total = quantized_weight_bytes(config, form, rest)
    how = form.meaning
    if weights not in ("bf16", "fp16", "fp32"):
        how = f"projections {form.name} ({form.meaning}), the rest bf16"
    return ForecastPart("weights", ceil(total / shards), how + over)
