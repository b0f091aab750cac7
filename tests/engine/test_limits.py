from __future__ import annotations

import pytest

from headrace.checkpoint.config import ModelConfig
from headrace.engine.limits import CPU_CACHE_BYTES, GIB, BatchLimits, decide_batch, decide_cache
from headrace.engine.settings import EngineSettings
from headrace.link.errors import ConfigurationError

CONFIG = ModelConfig(
    family="llama",
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=100,
    max_position=4096,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)
BATCH = BatchLimits(token_budget=512, max_batch_size=32, max_total_tokens=4096)


def cache(settings: EngineSettings, available: int, per_block: int = 1024**2, on_gpu: bool = False):
    return decide_cache(
        settings, BATCH, bytes_per_block=per_block, available_bytes=available, on_gpu=on_gpu
    )


def test_cpu_cache_stops_at_two_gib_and_gpu_cache_does_not() -> None:
    assert cache(EngineSettings(), 20 * GIB).num_blocks == CPU_CACHE_BYTES // 1024**2
    assert cache(EngineSettings(), 7 * GIB, on_gpu=True).num_blocks == 7 * 1024


def test_cache_never_exceeds_what_the_largest_batch_can_use() -> None:
    assert cache(EngineSettings(), 2 * GIB, per_block=1024).num_blocks == 32 * 256


def test_max_batch_total_tokens_is_honoured_exactly_or_refused() -> None:
    asked = EngineSettings(max_batch_total_tokens=100_000)
    assert cache(asked, 20 * GIB).tokens == 100_000
    with pytest.raises(ConfigurationError, match=r"needs 6\.10 GiB .* lower it to 16384 or below"):
        cache(asked, GIB)


def test_a_small_cache_lowers_the_longest_request_unless_the_user_named_it() -> None:
    small = cache(EngineSettings(max_batch_total_tokens=1000), GIB)
    assert (small.max_total_tokens, small.max_input_tokens) == (1008, 1007)
    with pytest.raises(ConfigurationError, match="--max-total-tokens 4096 exceeds the KV cache"):
        cache(EngineSettings(max_batch_total_tokens=1000, max_total_tokens=4096), GIB)


def test_no_memory_at_all_is_said() -> None:
    with pytest.raises(ConfigurationError, match="no memory for the KV cache"):
        cache(EngineSettings(), -5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (EngineSettings(max_total_tokens=5000), "exceeds the model's 4096 positions"),
        (EngineSettings(max_input_tokens=4096), "must be below"),
        (EngineSettings(max_batch_size=64, max_batch_prefill_tokens=32), "one token of every"),
        (EngineSettings(max_batch_size=-1), "--max-batch-size must be positive, got -1"),
    ],
)
def test_impossible_limits_are_refused(settings: EngineSettings, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        decide_batch(settings, CONFIG, on_gpu=False)
