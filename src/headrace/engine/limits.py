"""What the engine will take on: limits from settings, model and measured memory, with reasons."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.sizes import block_table_bytes, step_buffer_bytes
from headrace.engine.settings import EngineSettings
from headrace.link.errors import ConfigurationError

GIB = 1024**3

CPU_CACHE_BYTES = 2 * GIB
"""Most that the KV cache takes on a CPU unless asked for more: memory there is shared."""

GPU_RESERVE_BYTES = GIB
"""Left beside the KV cache on a GPU for captured graphs and for holes in torch's allocations."""

_CPU_TOKEN_BUDGET = 512
_GPU_TOKEN_BUDGET = 8192
_GPU_MIXED_TOKEN_BUDGET = 512
"""Of a step in which sequences decode: there prompts fill what reading the weights leaves idle.

Beyond, prompts only hold the others up: 512 tokens multiply as fast as 8192 on an H100.
"""

_CPU_BATCH_SIZE = 128
_GPU_BATCH_SIZE = 256


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest step: known before any memory is measured.

    Attributes:
        token_budget: Most tokens computed in one step.
        mixed_token_budget: The same where sequences decode in it; ``None``: as many.
        max_batch_size: Most sequences that run at once.
        max_total_tokens: Longest sequence that the model and the user permit.
    """

    token_budget: int
    max_batch_size: int
    max_total_tokens: int
    mixed_token_budget: int | None = None


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """The KV cache, sized from what memory is left.

    Attributes:
        num_blocks: Blocks for all layers; one block holds ``block_size`` tokens.
        max_input_tokens: Longest prompt.
        max_total_tokens: Longest prompt plus output of one request.
        reason: Why it has that size, for the log.
    """

    num_blocks: int
    block_size: int
    max_input_tokens: int
    max_total_tokens: int
    reason: str

    @property
    def tokens(self) -> int:
        """Capacity over all requests."""
        return self.num_blocks * self.block_size


def step_bytes(
    batch: BatchLimits,
    config: ModelConfig,
    *,
    block_size: int,
    activation_bytes: int,
    residual_bytes: int,
) -> int:
    """Bytes of the largest step's buffers and block tables; dtypes as ``step_buffer_bytes``."""
    buffers = step_buffer_bytes(
        config,
        max_tokens=batch.token_budget,
        max_rows=batch.max_batch_size,
        activation_bytes=activation_bytes,
        residual_bytes=residual_bytes,
    )
    return buffers + block_table_bytes(batch.max_batch_size, batch.max_total_tokens, block_size)


def decide_batch(settings: EngineSettings, config: ModelConfig, *, on_gpu: bool) -> BatchLimits:
    """Limits of one step.

    Raises:
        ConfigurationError: a limit is not positive or exceeds what the model can represent.
    """
    for name in (
        "max_input_tokens",
        "max_total_tokens",
        "max_batch_prefill_tokens",
        "max_batch_total_tokens",
        "max_batch_size",
        "kv_cache_bytes",
        "block_size",
        "threads",
    ):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be positive, got {value}")
    max_total = settings.max_total_tokens or config.max_position
    if max_total > config.max_position:
        raise ConfigurationError(
            f"--max-total-tokens {max_total} exceeds the model's {config.max_position} positions"
        )
    if settings.max_input_tokens is not None and settings.max_input_tokens >= max_total:
        raise ConfigurationError(
            f"--max-input-tokens {settings.max_input_tokens} must be below "
            f"--max-total-tokens {max_total}: at least one token is generated"
        )
    batch_size = settings.max_batch_size or (_GPU_BATCH_SIZE if on_gpu else _CPU_BATCH_SIZE)
    budget = settings.max_batch_prefill_tokens or max(
        batch_size, _GPU_TOKEN_BUDGET if on_gpu else _CPU_TOKEN_BUDGET
    )
    if budget < batch_size:
        raise ConfigurationError(
            f"--max-batch-prefill-tokens {budget} is below --max-batch-size {batch_size}: "
            "a step must hold one token of every running sequence"
        )
    return BatchLimits(budget, batch_size, max_total, _GPU_MIXED_TOKEN_BUDGET if on_gpu else None)


def decide_cache(
    settings: EngineSettings,
    batch: BatchLimits,
    *,
    bytes_per_block: int,
    available_bytes: int,
    on_gpu: bool,
) -> CacheLimits:
    """Size the KV cache.

    Args:
        bytes_per_block: Bytes of one block over all layers.
        available_bytes: Memory left on the device after weights and the largest step.

    Raises:
        ConfigurationError: what was asked for does not fit; says what is needed, what there is,
            and which flag to lower.
    """
    size = settings.block_size
    blocks_of_one = -(-batch.max_total_tokens // size)
    useful = batch.max_batch_size * blocks_of_one
    if settings.max_batch_total_tokens is not None:
        blocks = -(-settings.max_batch_total_tokens // size)
        needed = blocks * bytes_per_block
        if needed > available_bytes:
            raise ConfigurationError(
                f"--max-batch-total-tokens {settings.max_batch_total_tokens} needs "
                f"{needed / GIB:.2f} GiB of KV cache, {available_bytes / GIB:.2f} GiB are left: "
                f"lower it to {available_bytes // bytes_per_block * size} or below"
            )
        reason = "as --max-batch-total-tokens asks"
    elif settings.kv_cache_bytes is not None:
        if settings.kv_cache_bytes > available_bytes:
            raise ConfigurationError(
                f"--kv-cache-bytes asks for {settings.kv_cache_bytes / GIB:.2f} GiB, "
                f"{available_bytes / GIB:.2f} GiB are left"
            )
        blocks = settings.kv_cache_bytes // bytes_per_block
        reason = "as --kv-cache-bytes asks"
    else:
        bound = available_bytes if on_gpu else min(CPU_CACHE_BYTES, available_bytes)
        blocks = bound // bytes_per_block
        reason = f"{available_bytes / GIB:.2f} GiB left on the device" + (
            "" if on_gpu or bound < CPU_CACHE_BYTES else f", {CPU_CACHE_BYTES / GIB:g} GiB at most"
        )
        if blocks > useful:
            blocks = useful
            reason = f"{batch.max_batch_size} sequences of {batch.max_total_tokens} tokens"
    if blocks < 1:
        raise ConfigurationError(
            f"no memory for the KV cache: one block of {size} tokens needs {bytes_per_block} "
            f"bytes, {max(available_bytes, 0)} are left"
        )
    capacity = blocks * size
    max_total = min(batch.max_total_tokens, capacity)
    if settings.max_total_tokens is not None and settings.max_total_tokens > capacity:
        raise ConfigurationError(
            f"--max-total-tokens {settings.max_total_tokens} exceeds the KV cache of {capacity} "
            "tokens: lower it, or raise --max-batch-total-tokens"
        )
    max_input = settings.max_input_tokens or max_total - 1
    if max_input >= max_total:
        raise ConfigurationError(
            f"--max-input-tokens {max_input} does not fit the KV cache of {capacity} tokens"
        )
    return CacheLimits(int(blocks), size, max_input, max_total, reason)
