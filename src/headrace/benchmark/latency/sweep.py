"""Time every case, warmups first, and turn the samples into rows of a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from headrace.benchmark.latency.cases import LONG, SHORT, Case
from headrace.benchmark.latency.engine import MeasuredEngine
from headrace.benchmark.latency.generation import BatchGenerator
from headrace.benchmark.record import Row, median_row


@dataclass(frozen=True)
class Repeats:
    """How often each case is timed.

    Attributes:
        warmups: Unmeasured times before, at least.
        settle_seconds: They go on until so much time has passed: clocks and temperature are then
            those of a device at work, in every run.
        prefill: Measured times of a prefill.
        decode: Measured times of a decode step and of a whole decode.
    """

    warmups: int
    settle_seconds: float
    prefill: int
    decode: int

    def of(self, case: Case) -> int:
        """Times that this case is generated for, for the progress bar."""
        kinds = case.prefill * (self.warmups + self.prefill)
        return kinds + (case.decode + bool(case.decode_length)) * (self.warmups + self.decode)


def measure_cases(
    engine: MeasuredEngine,
    cases: Sequence[Case],
    repeats: Repeats,
    advance: Callable[[str], None],
) -> Iterator[Row]:
    """Rows as they are measured, the memory last.

    Args:
        advance: Called after each timed generation, warmups included, with what is measured.
    """
    facts = {"weights": engine.weights, "kv": engine.kv}
    for case in cases:
        engine.generator.prepare(case.batch, case.length)
        for row in _measure(engine.generator, case, repeats, advance):
            for name, fact in facts.items():
                setattr(row, name, fact)
            yield row
    yield median_row("peak_memory_gib", [engine.measured.peak_bytes() / 2**30], "GiB", **facts)


def _measure(
    generator: BatchGenerator, case: Case, repeats: Repeats, advance: Callable[[str], None]
) -> Iterator[Row]:
    batch, context = case.batch, case.context
    where = f"{batch} × {context} tokens"

    def samples(time_once: Callable[[], float], count: int) -> list[float]:
        began, warmups = time.perf_counter(), 0
        while warmups < repeats.warmups or time.perf_counter() - began < repeats.settle_seconds:
            time_once()
            warmups += 1
            if warmups <= repeats.warmups:
                advance(where)
        times = []
        for _ in range(count):
            times.append(1e3 * time_once())
            advance(where)
        return times

    def rows(
        time_metric: str, rate_metric: str, times: list[float], tokens: int, new_tokens: int | None
    ) -> Iterator[Row]:
        facts = {"batch": batch, "context": context, "new_tokens": new_tokens}
        yield median_row(time_metric, times, "ms", **facts)
        yield median_row(rate_metric, [1e3 * tokens / t for t in times], "1/s", **facts)

    def step_seconds() -> float:
        short = generator.generate(batch, context, SHORT).last_token
        long = generator.generate(batch, context, LONG).last_token
        return (long - short) / (LONG - SHORT)

    def decode_seconds() -> float:
        times = generator.generate(batch, context, case.decode_length + 1)
        return times.last_token - times.first_token

    if case.prefill:
        times = samples(lambda: generator.generate(batch, context, 1).last_token, repeats.prefill)
        yield from rows("prefill_ms", "prefill_tokens_per_s", times, batch * context, None)
    if case.decode:
        times = samples(step_seconds, repeats.decode)
        yield from rows("decode_step_ms", "output_tokens_per_s", times, batch, None)
    if case.decode_length:
        times = samples(decode_seconds, repeats.decode)
        tokens = batch * case.decode_length
        yield from rows("decode_total_ms", "decode_tokens_per_s", times, tokens, case.decode_length)
