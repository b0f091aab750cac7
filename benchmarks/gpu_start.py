"""From the start of a process to an engine that is ready, measured from outside it.

A new Python process opens ``LLM`` on a built-in shape with random weights, made on the device, and
generates one token. It is timed three ways: with nothing cached (no tuning file, nothing of
Triton's), right after (everything cached) and once more. Writes a record.

    python benchmarks/gpu_start.py llama3-8b --out benchmarks/records/h100-start.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headrace.benchmark.measured_device import MeasuredDevice
from headrace.benchmark.offline.stand_in import stand_in_directory
from headrace.benchmark.record import Row, median_row, own_record
from headrace.checkpoint.shapes import shape
from headrace.hardware.device import resolve_device

CHILD = """
import sys
from headrace import LLM, SamplingParams
llm = LLM(sys.argv[1], random_weights_seed=0, device=sys.argv[2])
print("@ready", flush=True)
llm.generate([[11, 12, 13]], SamplingParams(max_new_tokens=1), progress=False)
print("@token", flush=True)
"""


def start(directory: str, device: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds to ready, and from there to the first token.

    Raises:
        RuntimeError: The process ended before.
    """
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, directory, device],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    assert child.stdout is not None
    times: dict[str, float] = {}
    for line in child.stdout:
        if line.startswith("@"):
            times[line.strip()] = time.perf_counter() - began
        else:
            print(line, end="", flush=True)
    if child.wait() != 0 or len(times) != 2:
        raise RuntimeError(f"the engine ended with status {child.returncode} after {times}")
    return times["@ready"], times["@token"] - times["@ready"]


def main() -> int:
    """Time the starts, print and record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="llama3-8b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--warm-runs", type=int, default=2)
    parser.add_argument("--caches", type=Path, help="an empty directory, kept; else a passing one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.caches and arguments.caches.exists() and any(arguments.caches.iterdir()):
        parser.error(f"--caches {arguments.caches} is not empty")
    rows: list[Row] = []
    with (
        stand_in_directory(shape(arguments.model)) as directory,
        contextlib.ExitStack() as stack,
    ):
        caches = arguments.caches or stack.enter_context(tempfile.TemporaryDirectory())
        environment = {
            "HEADRACE_CACHE": f"{caches}/headrace", "TRITON_CACHE_DIR": f"{caches}/triton"
        }  # fmt: skip
        for cached, count in (("nothing", 1), ("tuning file and kernels", arguments.warm_runs)):
            found = [start(directory, arguments.device, environment) for _ in range(count)]
            for metric, samples in zip(
                ("ready_s", "first_token_after_ready_s"), zip(*found, strict=True), strict=True
            ):
                rows.append(median_row(metric, samples, "s", conditions={"cached": cached}))
                print(f"{metric}, cached: {cached}: {[round(s, 2) for s in samples]}", flush=True)
    measured = MeasuredDevice(resolve_device(arguments.device))
    own_record(
        measured.name, rows, measured.versions(), driver=measured.driver, seed=0,
        model=arguments.model,
    ).write(arguments.out)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
