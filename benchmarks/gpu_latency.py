"""Decode-step and prefill times of a Llama-3-8B-shaped model with random weights on one GPU.

    PYTHONPATH=src python benchmarks/gpu_latency.py --out benchmarks/records/h100-latency.json

A decode step is (time for 136 new tokens - time for 8) / 128, prefill the time of one new token;
``context`` is the prompt's length. Prompts are fresh random ids in every repeat, decoding is greedy
through the ordinary sampler, and up to two steps are in flight, as in the engine. No HTTP, no
scheduler: the model runner alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import torch

from headrace.benchmark.provenance import command_line, commit_of, versions_of
from headrace.benchmark.record import Record, Row, median_row
from headrace.checkpoint.config import ModelConfig
from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.triton_gpu import TritonBackend
from headrace.modeling.loading.load import random_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits, ScheduledTokens

SHAPES = {
    "llama3-8b": ModelConfig(
        family="llama", hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32,
        num_kv_heads=8, head_dim=128, vocab_size=128256, max_position=8192, rms_norm_eps=1e-5,
        rope_theta=500000.0,
    ),
    "llama3-1b": ModelConfig(
        family="llama", hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32,
        num_kv_heads=8, head_dim=64, vocab_size=128256, max_position=8192, rms_norm_eps=1e-5,
        rope_theta=500000.0,
    ),
}  # fmt: skip
DECODE_CASES = "1x128,8x128,32x128,64x128,128x128,256x128,32x2048"
PREFILL_CASES = "1x512,1x2048,8x1024"
_SHORT, _LONG = 8, 136
_MOST_IN_FLIGHT = 2


class Generator:
    """Greedy generation for a whole batch through the model runner."""

    def __init__(self, runner: ModelRunner, vocab_size: int, max_tokens: int) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._random = torch.Generator().manual_seed(time.time_ns() & 0xFFFFFFFF)

    def prepare(self, batch: int, length: int, block_size: int) -> None:
        """Give every row its blocks and a greedy sampler."""
        blocks = -(-length // block_size)
        for row in range(batch):
            self._runner.set_row(row, SamplingParams(), [], ())
            self._runner.set_blocks(row, 0, list(range(row * blocks, (row + 1) * blocks)))

    def seconds(self, batch: int, context: int, new_tokens: int) -> float:
        """Time from fresh prompts on the host to the last token on the host."""
        size = (batch, context)
        prompts = torch.randint(10, self._vocab_size, size, generator=self._random).numpy()
        torch.cuda.synchronize()
        started = time.perf_counter()
        pending = deque()
        rows_a_step = max(1, self._max_tokens // context)
        for first in range(0, batch, rows_a_step):
            rows = range(first, min(batch, first + rows_a_step))
            pending.append(
                self._runner.launch(
                    [ScheduledTokens(row, 0, prompts[row], samples=True) for row in rows]
                )
            )
        for index in range(new_tokens - 1):
            while len(pending) >= _MOST_IN_FLIGHT:
                pending.popleft().wait()
            pending.append(
                self._runner.launch(
                    [
                        ScheduledTokens(row, context + index, None, samples=True)
                        for row in range(batch)
                    ]
                )
            )
        while pending:
            pending.popleft().wait()
        return time.perf_counter() - started


def parse_cases(text: str) -> list[tuple[int, int]]:
    """``1x128,8x128`` as (batch, context) pairs."""
    return [tuple(map(int, case.split("x"))) for case in text.split(",") if case]  # type: ignore[misc]


def driver_version() -> str | None:
    """The kernel driver's version, where ``nvidia-smi`` tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def profile_decode(generator: Generator, batch: int, context: int) -> list[tuple[str, float]]:
    """Kernel name to microseconds a decode step, largest first."""
    from torch.profiler import ProfilerActivity, profile

    generator.seconds(batch, context, 2)
    steps = 8
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        generator.seconds(batch, context, 1)
        torch.cuda.synchronize()
    base = {event.key: event.self_device_time_total for event in profiler.key_averages()}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        generator.seconds(batch, context, 1 + steps)
        torch.cuda.synchronize()
    totals = {
        event.key: (event.self_device_time_total - base.get(event.key, 0.0)) / steps
        for event in profiler.key_averages()
    }
    return sorted(totals.items(), key=lambda item: -item[1])


def main() -> int:
    """Measure, print a table, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--decode", default=DECODE_CASES)
    parser.add_argument("--prefill", default=PREFILL_CASES)
    parser.add_argument("--tuning", choices=("auto", "library"), default="auto")
    parser.add_argument("--decode-repeats", type=int, default=3)
    parser.add_argument("--prefill-repeats", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--profile", default="", help="cases whose kernels are listed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--commit", default=os.environ.get("COMMIT"), help="where no checkout tells it"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    commit = arguments.commit or commit_of(Path(__file__).parents[1])
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    decode, prefill = parse_cases(arguments.decode), parse_cases(arguments.prefill)
    block_size = 16
    lengths = [(b, c + _LONG) for b, c in decode] + [(b, c + 1) for b, c in prefill]
    config, dtype = SHAPES[arguments.shape], getattr(torch, arguments.dtype)
    started = time.perf_counter()
    backend = TritonBackend(torch.device("cuda"), dtype, tuning=arguments.tuning)
    decoder = random_decoder(config, arguments.seed, backend.operations)
    torch.cuda.synchronize()
    loaded = time.perf_counter()
    runner = ModelRunner(
        config,
        decoder,
        backend,
        RunnerLimits(
            max_tokens=arguments.max_tokens,
            max_rows=max(batch for batch, _ in lengths),
            max_length=max(length for _, length in lengths),
            block_size=block_size,
            num_blocks=max(batch * -(-length // block_size) for batch, length in lengths),
        ),
    )
    runner.warm_up()
    runner.capture_graphs()
    torch.cuda.synchronize()
    ready = time.perf_counter()
    print(f"weights {loaded - started:.1f} s, tuning and graphs {ready - loaded:.1f} s", flush=True)
    generator = Generator(runner, config.vocab_size, arguments.max_tokens)
    kind = {"bfloat16": "bf16", "float16": "fp16"}[arguments.dtype]
    kinds = {"weights": kind, "kv": kind}
    rows: list[Row] = []
    reserved = 0
    for batch, context in prefill:
        generator.prepare(batch, context + 1, block_size)
        for _ in range(2):
            generator.seconds(batch, context, 1)
        samples = [
            generator.seconds(batch, context, 1) * 1000 for _ in range(arguments.prefill_repeats)
        ]
        rows.append(median_row("prefill_ms", samples, "ms", batch=batch, context=context, **kinds))
        print(rows[-1].metric, batch, context, rows[-1].value, rows[-1].samples, flush=True)
    for batch, context in decode:
        generator.prepare(batch, context + _LONG, block_size)
        generator.seconds(batch, context, _SHORT)
        samples = []
        for _ in range(arguments.decode_repeats):
            short = generator.seconds(batch, context, _SHORT)
            long = generator.seconds(batch, context, _LONG)
            samples.append((long - short) * 1000 / (_LONG - _SHORT))
        rows.append(
            median_row("decode_step_ms", samples, "ms", batch=batch, context=context, **kinds)
        )
        print(rows[-1].metric, batch, context, rows[-1].value, rows[-1].samples, flush=True)
        reserved = max(reserved, torch.cuda.max_memory_reserved())
    rows.append(median_row("peak_memory_gib", [reserved / 2**30], "GiB", **kinds))
    for batch, context in parse_cases(arguments.profile):
        generator.prepare(batch, context + _LONG, block_size)
        print(f"kernels of a decode step, batch {batch}, context {context} (us)")
        for name, microseconds in profile_decode(generator, batch, context)[:14]:
            print(f"  {microseconds:9.1f}  {name[:90]}")
    if arguments.out:
        Record(
            device=torch.cuda.get_device_name(),
            driver=driver_version(),
            versions={
                **versions_of("torch", "triton"),
                "runtime": str(torch.version.hip or torch.version.cuda),
            },
            commit=commit,
            command=command_line().replace(f"{arguments.out.parent}/", ""),
            seed=arguments.seed,
            system="headrace",
            rows=rows,
        ).write(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
