"""What the engine process is told at its start. Plain data: the transport process builds it."""

from __future__ import annotations

import msgspec


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one engine; ``None`` means that warmup decides.

    Attributes:
        model: Directory, GGUF file or hub id; ``None``: the built-in model.
        device: ``auto``, ``cpu`` or ``cuda`` (which is also what torch calls an AMD GPU).
        backend: ``auto``, or the name of a backend that must be used (``torch``, ``native``, …).
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        max_input_tokens: Longest prompt.
        max_total_tokens: Longest prompt plus output of one request.
        max_batch_prefill_tokens: Token budget of one step.
        max_batch_total_tokens: KV cache capacity in tokens; honoured or refused.
        max_batch_size: Most sequences that run at once.
        max_waiting: Most sequences that wait in the engine's queue.
        block_size: Tokens in one KV block.
        kv_cache_dtype: ``auto``, as activations are, or ``int8`` (native CPU backend).
        kv_cache_bytes: Upper bound of the KV cache when ``max_batch_total_tokens`` is ``None``.
        threads: CPU threads; ``None``: from the machine.
        prefix_cache: Reuse the KV blocks of equal prefixes.
        json_output: Log lines as JSON.
        log_level: Least severe log line that the engine process writes.
        ageing_seconds: Waiting so long is worth one level of priority.
        packed_weights: Compute with quantized weights as they are packed, activations rounded to
            8 bits, where the backend can; otherwise they are unpacked to ``dtype`` at load.
            ``None``: yes, unless a ``dtype`` is named.
        lora_adapters: Name to PEFT directory or hub id of each adapter that requests may choose.
        max_lora_rank: Largest rank of an adapter that is accepted.
        random_weights_seed: Draw the weights from this seed instead of reading them.
    """

    model: str | None = None
    revision: str | None = None
    device: str = "auto"
    backend: str = "auto"
    dtype: str = "auto"
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_batch_prefill_tokens: int | None = None
    max_batch_total_tokens: int | None = None
    max_batch_size: int | None = None
    max_waiting: int = 4096
    block_size: int = 16
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    threads: int | None = None
    prefix_cache: bool = True
    ageing_seconds: float = 1.0
    packed_weights: bool | None = None
    lora_adapters: dict[str, str] = {}
    max_lora_rank: int = 64
    random_weights_seed: int | None = None
    json_output: bool = False
    log_level: str = "info"
