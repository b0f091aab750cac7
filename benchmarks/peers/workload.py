"""The workload every peer and headrace itself are timed on; standard library only.

A decode step is (time for 136 new tokens - time for 8) / 128; prefill is the time of one new
token. Prompts are fresh random ids in every repeat, so that no prefix is ever reused.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable

PROMPT, SHORT, LONG = 128, 8, 136
FIRST_ID, LAST_ID = 100, 49_000
BATCHES = (1, 8, 32)

Generate = Callable[[list[list[int]], int], None]
"""Generates exactly so many greedy tokens for each prompt, ignoring end of sequence."""


def prompts(rng: random.Random, batch: int) -> list[list[int]]:
    """``batch`` prompts of ``PROMPT`` random ids."""
    return [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(PROMPT)] for _ in range(batch)]


def timed(generate: Generate, batch: list[list[int]], new_tokens: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    generate(batch, new_tokens)
    return time.perf_counter() - start


def measure(
    generate: Generate,
    repeats: int = 3,
    seed: int | None = None,
    largest_repeats: int | None = None,
) -> list[dict[str, object]]:
    """Rows (metric, batch, value, unit, samples) of decode and prefill at each batch size.

    Args:
        largest_repeats: Repeats of the largest batch, where a system takes minutes for one;
            ``None``: as many. The record's ``samples`` show how many there were.
    """
    rng = random.Random(seed)
    rows: list[dict[str, object]] = []
    for batch in BATCHES:
        generate(prompts(rng, batch), SHORT)
        steps, prefills = [], []
        count = largest_repeats if largest_repeats and batch == BATCHES[-1] else repeats
        for _ in range(count):
            prefills.append(1e3 * timed(generate, prompts(rng, batch), 1))
            short = timed(generate, prompts(rng, batch), SHORT)
            long = timed(generate, prompts(rng, batch), LONG)
            steps.append(1e3 * (long - short) / (LONG - SHORT))
        rows.append(row("decode_step_ms", batch, "ms", steps))
        rows.append(row("output_tokens_per_s", batch, "1/s", [1e3 * batch / s for s in steps]))
        rows.append(row("prefill_ms", batch, "ms", prefills))
        rows.append(
            row("prefill_tokens_per_s", batch, "1/s", [1e3 * batch * PROMPT / p for p in prefills])
        )
    return rows


def row(metric: str, batch: int, unit: str, samples: list[float]) -> dict[str, object]:
    """One row of a record; its value is the median."""
    return {
        "metric": metric,
        "batch": batch,
        "context": PROMPT,
        "value": statistics.median(samples),
        "unit": unit,
        "samples": samples,
    }


def report(system: str, version: str, weights: str, rows: list[dict[str, object]]) -> None:
    """Print one JSON line that ``benchmarks/compare_cpu.py`` reads."""
    for entry in rows:
        entry["weights"] = weights
    json.dump({"system": system, "version": version, "rows": rows}, sys.stdout)
    print()
