"""The load of ``fixed_memory.py`` does reach every limit; seen on a CPU, where memory may grow."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from mixed_load import drive, requests, short_of

from headrace.checkpoint.config import ModelConfig
from headrace.engine.build import build_engine
from headrace.engine.settings import EngineSettings

CONFIG = ModelConfig(
    family="llama", hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=16, vocab_size=300, max_position=128, rms_norm_eps=1e-5,
    rope_theta=1e4,
)  # fmt: skip


class RandomCheckpoint:
    """An architecture whose weights are drawn."""

    model_id = "random"
    path = Path("random")
    config = CONFIG
    eos_token_ids = (2,)


def test_mixed_load_reaches_every_limit() -> None:
    checkpoint: Any = RandomCheckpoint()
    engine, ready = build_engine(
        checkpoint,
        EngineSettings(
            device="cpu", backend="torch", dtype="float32", random_weights_seed=0, block_size=8,
            max_batch_size=8, max_batch_prefill_tokens=32, max_batch_total_tokens=256,
            prefix_cache=False,
        ),
    )  # fmt: skip
    load = requests(ready, random.Random(0))
    reached = drive(engine, load)
    assert short_of(reached, ready, len(load), token_budget=32) == []
    engine.check_integrity()
