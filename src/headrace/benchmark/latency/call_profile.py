"""Which operations a decode step on a CPU spends its time in.

A recorded program times its calls. A step's share of an operation is (its time in a generation of
many tokens - that in one of few) / the steps between, as the step itself is timed; what no call
accounts for is Python, sampling included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from headrace.benchmark.kernels.ceilings import measure_bandwidth
from headrace.benchmark.latency.cases import PROFILED_TOKENS, SHORT
from headrace.benchmark.latency.engine import MeasuredEngine
from headrace.benchmark.latency.operation_shares import operation_row
from headrace.benchmark.record import Row, median_row
from headrace.checkpoint.config import ModelConfig

HOST = "Python and sampling"
_REPEATS = 3
_KV_BYTES = {"bf16": 2, "fp32": 4}
_CALLS = {
    "norm": "norms",
    "rotary": "rotation, cache",
    "attention": "attention",
    "attention fold": "attention",
    "embed": "embedding",
    "gather": "embedding",
    "activation": "gate and up",
}


def profile_calls(
    engine: MeasuredEngine, cases: Sequence[tuple[int, int]], threads: int
) -> list[Row]:
    """Rows of every (batch, context), the largest operation first, then the rate of reading.

    A floor is bytes over that rate, of weights or of the KV cache: with many sequences arithmetic
    asks for more.
    """
    rate = measure_bandwidth(torch.device("cpu"), threads)
    names = call_names(engine.config)
    rows: list[Row] = []
    for batch, context in cases:
        engine.generator.prepare(batch, context + PROFILED_TOKENS)
        engine.generator.generate(batch, context, SHORT)
        samples = [_step(engine, names, batch, context) for _ in range(_REPEATS)]
        mean_context = context + (SHORT + PROFILED_TOKENS) / 2
        least = _floors(engine, names, batch, mean_context, rate)
        found = [
            operation_row(
                operation, [sample[operation] for sample in samples], least.get(operation),
                batch, context,
            )
            for operation in samples[0]
        ]  # fmt: skip
        rows += sorted(found, key=lambda row: -row.value)
    return [*rows, median_row("read_rate", [rate / 1e9], "GB/s")]


def call_names(config: ModelConfig) -> dict[str, str]:
    """What a program calls its calls, to the operation that each belongs to."""
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = {
        f"linear {config.vocab_size}x{hidden}": "head",
        f"linear {hidden}x{inner}": "down",
        f"linear {2 * inner}x{hidden}": "gate and up",
        f"linear {hidden}x{config.q_size}": "output",
        f"linear {config.q_size + 2 * config.kv_size}x{hidden}": "qkv",
    }
    return _CALLS | linears


def _step(
    engine: MeasuredEngine, names: dict[str, str], batch: int, context: int
) -> dict[str, float]:
    """Operation to microseconds of a step; they add up to it."""
    short, long = (_timed(engine, names, batch, context, n) for n in (SHORT, PROFILED_TOKENS))
    steps = PROFILED_TOKENS - SHORT
    return {operation: 1e6 * (long[operation] - short[operation]) / steps for operation in long}


def _timed(
    engine: MeasuredEngine, names: dict[str, str], batch: int, context: int, new_tokens: int
) -> dict[str, float]:
    """Operation to seconds of a generation."""
    programs = engine.generator.timed_programs
    for program in programs:
        program.set_profiling(True)
    total = engine.generator.generate(batch, context, new_tokens).last_token
    spent: dict[str, float] = defaultdict(float)
    for program in programs:
        for call, seconds in program.profile():
            spent[names.get(call, call)] += seconds
        program.set_profiling(False)
    spent[HOST] = total - sum(spent.values())
    return spent


def _floors(
    engine: MeasuredEngine, names: dict[str, str], batch: int, context: float, rate: float
) -> dict[str, float]:
    """Operation to the microseconds that reading its weights, or the cache, takes."""
    config = engine.config
    cached = 2 * batch * context * config.kv_size * _KV_BYTES[engine.kv]
    read: dict[str, float] = defaultdict(float)
    read["attention"] = config.num_layers * cached
    for program in engine.generator.timed_programs:
        for call, size in program.linear_bytes():
            read[names.get(call, call)] += size
    return {operation: 1e6 * size / rate for operation, size in read.items()}
