"""The load generator alone: streams and events a second that one core carries, and what each costs.

The generator of ``headrace bench serve`` has one core to itself, a server without a model
(``headrace.benchmark.serving.null_server``) another.

    python benchmarks/load_generator.py --record benchmarks/records/cpu-zen4-load-generator.json
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.benchmark.serving.arrivals import due_times
from headrace.benchmark.serving.load import Load, LoadLimits
from headrace.benchmark.serving.outcome import Outcome
from headrace.benchmark.serving.target import find_target
from headrace.benchmark.serving.workload import RandomWorkload
from headrace.hardware.processor import processor

_NULL_SERVER = [sys.executable, "-m", "headrace.benchmark.serving.null_server"]


async def watched(load: Load, streams: int, seconds: int) -> list[tuple[float, float, int]]:
    """(events a second, processor us an event, streams at the second's end), a second each.

    Counting begins when every stream is open.
    """
    running = asyncio.create_task(load.run(due_times(math.inf, "fixed", 0)))
    while load.in_flight < streams:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    found = []
    for _ in range(seconds):
        events, processor_time, begun = load.events, time.process_time(), time.perf_counter()
        await asyncio.sleep(1.0)
        elapsed, came = time.perf_counter() - begun, load.events - events
        cost = 1e6 * (time.process_time() - processor_time) / max(came, 1)
        found.append((came / elapsed, cost, load.in_flight))
    running.cancel()
    return found


def measure(streams: int, pace: float, seconds: int) -> list[Row]:
    """Rows of one pace."""
    cores = sorted(os.sched_getaffinity(0))
    with subprocess.Popen(
        [*_NULL_SERVER, "--pace", str(pace)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]}),
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            os.sched_setaffinity(0, {cores[0]})
            target = find_target(f"http://127.0.0.1:{port}", "completions", None, None)
            # Streams end and begin anew while they are watched.
            tokens = max(2, int(pace * seconds / 2))
            workload = RandomWorkload(0, 128, tokens, spread=0.5, token_ids=(1000, 30000))
            limits = LoadLimits(
                requests=None, seconds=600.0, max_concurrency=streams, timeout=600.0
            )
            load = Load(target, workload, limits, ignore_eos=True)
            found = uvloop.run(watched(load, streams, seconds))
        finally:
            os.sched_setaffinity(0, set(cores))
            server.terminate()
    failed = [outcome for outcome in load.outcomes if outcome.error]
    conditions = {"offered_events_per_s": streams * pace}
    gaps = [1e3 * gap for outcome in good(load) for gap in outcome.gaps]
    rows = [
        median_row("events_per_s", [round(second[0], 1) for second in found], "1/s"),
        median_row("client_us_per_event", [round(second[1], 2) for second in found], "us"),
        median_row("streams", [second[2] for second in found], "streams"),
        median_row("itl_ms", [round(gap, 3) for gap in gaps[:: max(1, len(gaps) // 20000)]], "ms"),
        median_row("failed", [len(failed)], "requests"),
    ]
    for row in rows:
        row.batch, row.conditions = streams, dict(conditions)
    return rows


def good(load: Load) -> list[Outcome]:
    """Streams that ended well."""
    return [outcome for outcome in load.outcomes if not outcome.error]


def main() -> None:
    """Measure each pace, print, write the record if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--paces", type=float, nargs="+", default=[5.0, 10.0, 20.0])
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for pace in arguments.paces:
        made = measure(arguments.streams, pace, arguments.seconds)
        rows += made
        shown = ", ".join(f"{row.metric} {row.value:,.1f}" for row in made)
        print(f"{arguments.streams} streams at {pace:g} events/s each: {shown}", flush=True)
    if arguments.record:
        versions = versions_of("uvloop", "httptools", "msgspec")
        own_record(processor(), rows, versions, seed=0).write(arguments.record)


if __name__ == "__main__":
    main()
