"""Steps of a model on the native CPU backend against what the machine's memory allows.

Bandwidth is measured in the same run. A decode step's floor is the time to read the weights and
the keys and values once; a prefill has no such floor and is given in tokens per second.

    python benchmarks/native_kernels.py [--weights q4_1|bf16] [--threads N] [--kernels]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from headrace.checkpoint.resolve import resolve
from headrace.modeling.activations import Activations
from headrace.modeling.backends.native_cpu import NativeCpuBackend, NativeProgram
from headrace.modeling.decoder import Decoder
from headrace.modeling.loading.load import load_decoder
from headrace.modeling.step import StepInputs

BLOCK_SIZE = 16


@dataclass
class Bench:
    """A model with buffers for ``rows`` sequences of ``context`` tokens."""

    backend: NativeCpuBackend
    decoder: Decoder
    step: StepInputs
    buffers: Activations
    body: NativeProgram
    head: NativeProgram
    cache_bytes_per_token: int

    @classmethod
    def build(cls, backend: NativeCpuBackend, rows: int, context: int, tokens: int) -> Bench:
        """The built-in model, its caches filled with whatever the steps write."""
        checkpoint = resolve(None)
        config, operations = checkpoint.config, backend.operations
        decoder = load_decoder(checkpoint, operations)
        pages = -(-context // BLOCK_SIZE)
        caches = [
            operations.allocate_cache(layer.attention, rows * pages, BLOCK_SIZE)
            for layer in decoder.layers
        ]

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32)

        # Pages of a sequence lie apart, as they do in a server that has run for a while.
        scattered = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(0))
        step = StepInputs(
            token_ids=ints(tokens),
            positions=ints(tokens),
            cache_slots=ints(tokens),
            query_start=ints(rows + 1),
            context_lengths=ints(rows),
            rows=torch.arange(rows, dtype=torch.int32),
            block_tables=scattered.view(rows, pages).int().contiguous(),
            sampled_tokens=ints(tokens),
            max_query_length=tokens,
            max_context_length=context,
        )
        buffers = Activations.allocate(config, operations, tokens, rows)
        per_block = sum(
            operations.cache_bytes_per_block(layer.attention, BLOCK_SIZE)
            for layer in decoder.layers
        )
        return cls(
            backend,
            decoder,
            step,
            buffers,
            backend.compile(lambda s, a: decoder.body(s, a, caches), step, buffers),
            backend.compile(lambda _, a: decoder.compute_logits(a), step, buffers),
            per_block // BLOCK_SIZE,
        )

    def fill(self, new_tokens: int, contexts: list[int]) -> None:
        """Inputs of a step that brings ``new_tokens`` to each sequence."""
        generator = np.random.default_rng(0)
        tables = self.step.block_tables.numpy()
        position = np.concatenate([np.arange(c - new_tokens, c) for c in contexts])
        row = np.repeat(np.arange(len(contexts)), new_tokens)
        total = len(position)
        self.step.token_ids.numpy()[:total] = generator.integers(0, 40000, total)
        self.step.positions.numpy()[:total] = position
        pages = tables[row, position // BLOCK_SIZE]
        self.step.cache_slots.numpy()[:total] = pages * BLOCK_SIZE + position % BLOCK_SIZE
        self.step.query_start.numpy()[: len(contexts) + 1] = (
            np.arange(len(contexts) + 1) * new_tokens
        )
        self.step.context_lengths.numpy()[: len(contexts)] = contexts
        self.step.sampled_tokens.numpy()[: len(contexts)] = (
            np.arange(1, len(contexts) + 1) * new_tokens - 1
        )

    def run(self, new_tokens: int, contexts: list[int]) -> None:
        """One step on what ``fill`` wrote."""
        size = len(contexts)
        arguments = (new_tokens * size, size, size, new_tokens, max(contexts))
        self.body.run(*arguments)
        self.head.run(*arguments)


def seconds(function: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Median and least time of ``repeats`` calls after two unmeasured ones."""
    function()
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times)


def read_bandwidth(threads: int) -> float:
    """Bytes a second that all threads together read from memory."""
    torch.set_num_threads(threads)
    source = torch.ones(1 << 26)
    return source.nbytes / seconds(lambda: source.sum(), 10)[1]


def kernel_times(bench: Bench, steps: int, run: Callable[[], None]) -> dict[str, float]:
    """Milliseconds that a step spends in each kind of call: the median of each call, summed."""
    programs = (bench.body, bench.head)
    times: dict[tuple[int, int, str], list[float]] = defaultdict(list)
    for _ in range(steps):
        for program in programs:
            program.set_profiling(True)
        run()
        for which, program in enumerate(programs):
            for index, (name, value) in enumerate(program.profile()):
                times[which, index, name].append(value)
            program.set_profiling(False)
    totals: dict[str, float] = defaultdict(float)
    for (_, _, name), values in times.items():
        totals[name] += statistics.median(values) * 1e3
    return {name: round(value, 3) for name, value in totals.items()}


def main() -> None:
    """Measure and print one JSON line a configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=["q4_1", "bf16"], default="q4_1")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--instruction-set")
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prefills", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--kernels", action="store_true", help="time of each kind of call")
    arguments = parser.parse_args()
    backend = NativeCpuBackend(
        threads=arguments.threads,
        instruction_set=arguments.instruction_set,
        quantized=arguments.weights == "q4_1",
    )
    longest = max([arguments.context, *arguments.prefills]) + 16
    tokens = max([32, *arguments.batches, *arguments.prefills])
    bench = Bench.build(backend, max([1, *arguments.batches]), longest, tokens)
    bandwidth = read_bandwidth(backend.threads)
    # The embedding table is not read; a tied head is the same tiles.
    weights = bench.decoder.num_bytes - bench.decoder.embedding.num_bytes
    print(
        json.dumps(
            {
                "instruction_set": backend.instruction_set,
                "threads": backend.threads,
                "bandwidth_GB_s": round(bandwidth / 1e9, 1),
                "weights_MB": round(weights / 1e6, 1),
            }
        )
    )
    work = [(batch, 1, arguments.context) for batch in arguments.batches]
    work += [(1, length, length) for length in arguments.prefills]
    for batch, new_tokens, context in work:
        contexts = [context] * batch
        bench.fill(new_tokens, contexts)

        def run(new_tokens: int = new_tokens, contexts: list[int] = contexts) -> None:
            bench.run(new_tokens, contexts)

        elapsed, least = seconds(run, arguments.repeats if new_tokens == 1 else 5)
        result: dict[str, object] = {
            "batch": batch,
            "new_tokens": new_tokens,
            "context": context,
            "ms": round(elapsed * 1e3, 2),
            "tokens_per_s": round(batch * new_tokens / elapsed, 1),
            "best_ms": round(least * 1e3, 2),
            "best_tokens_per_s": round(batch * new_tokens / least, 1),
        }
        if new_tokens == 1:
            floor = (weights + batch * context * bench.cache_bytes_per_token) / bandwidth
            result["share_of_bandwidth"] = round(floor / elapsed, 3)
        if arguments.kernels:
            result["kernels_ms"] = kernel_times(bench, 20 if new_tokens == 1 else 4, run)
        print(json.dumps(result))


if __name__ == "__main__":
    main()
