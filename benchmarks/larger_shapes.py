"""Decode and prefill of larger shapes on this CPU, random weights, beside the memory's bandwidth.

A step of one sequence reads every weight but the embedding table once, and the keys and values of
its context: the bandwidth measured in this run over these bytes bounds the steps a second.

    python benchmarks/larger_shapes.py --shapes llama3-1b llama3-8b --out FILE.json
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from pathlib import Path

import torch

from headrace.benchmark.kernels.ceilings import measure_ceilings
from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import expected_tensors
from headrace.checkpoint.shapes import shape
from headrace.hardware.processor import processor, usable_cores
from headrace.modeling.backends.choose import choose_backend
from headrace.modeling.loading.load import build_decoder
from headrace.modeling.loading.random_weights import STANDARD_DEVIATION, RandomReader
from headrace.modeling.operations import GGUFBlocks, WeightPart
from headrace.modeling.runner import ModelRunner, RunnerLimits, ScheduledTokens

CONTEXT, BLOCK_SIZE = 128, 16
SEED = 0
CPU = torch.device("cpu")


class Q40Reader:
    """Random matrices as a GGUF file of type Q4_0 holds them; vectors as ``RandomReader``'s."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_tensors(config)
        self._vectors = RandomReader(config, SEED, CPU, torch.bfloat16)
        self._generator = torch.Generator(CPU).manual_seed(SEED)

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """A norm or bias."""
        return self._vectors.read_vector(name, dtype)

    def read(self, name: str) -> WeightPart:
        """Blocks of 32: a scale, and quants spread evenly over their 16 values."""
        n, k = self._shapes[name]
        data = torch.randint(0, 256, (n, k // 32, 18), dtype=torch.uint8, generator=self._generator)
        # Quants from -8 to 7 deviate by 4.6 on the average square.
        scale = torch.tensor([STANDARD_DEVIATION / 4.6], dtype=torch.float16)
        data[:, :, :2] = scale.view(torch.uint8)
        return GGUFBlocks(data.view(n, -1), "Q4_0", (n, k))


def measure(name: str, form: str, batches: list[int], steps: int) -> list[Row]:
    """Rows of one shape and format."""
    config = shape(name)
    threads = usable_cores()
    backend = choose_backend(
        "native", "cpu", "bfloat16", head_dim=config.head_dim, threads=threads, packed_weights=True
    ).backend
    torch.set_num_threads(threads)  # which lay the weights out
    packed = form == "q4_0"
    reader = Q40Reader(config) if packed else RandomReader(config, SEED, CPU, torch.bfloat16)
    length = CONTEXT + steps + 8
    decoder = build_decoder(config, reader, backend.operations, length)
    blocks, most = -(-length // BLOCK_SIZE), max(batches)
    limits = RunnerLimits(
        max_tokens=CONTEXT,
        max_rows=most,
        max_length=length,
        block_size=BLOCK_SIZE,
        num_blocks=most * blocks,
    )
    runner = ModelRunner(config, decoder, backend, limits)
    weights = decoder.num_bytes - table_bytes(config, form)
    rows: list[Row] = []
    rng = random.Random(SEED)
    for row in range(most):
        runner.set_blocks(row, 0, list(range(row * blocks, (row + 1) * blocks)))
    for batch in batches:
        prefills, decodes = [], []
        for row in range(batch):
            prompt = [rng.randrange(config.vocab_size) for _ in range(CONTEXT)]
            prefills.append(timed(runner, [ScheduledTokens(row, 0, prompt, samples=True)]))
        for step in range(steps):
            entries = [ScheduledTokens(row, CONTEXT + step, None, True) for row in range(batch)]
            decodes.append(timed(runner, entries))
        facts = {
            "weights": form, "batch": batch, "context": CONTEXT, "conditions": {"shape": name}
        }  # fmt: skip
        kv = batch * CONTEXT * 2 * config.kv_size * config.num_layers * 2
        bandwidth = measure_ceilings(CPU, torch.bfloat16, threads).bytes_per_second
        step_row = median_row("decode_step_ms", [1e3 * s for s in decodes], "ms", **facts)
        share = 100 * (weights + kv) / bandwidth / (step_row.value / 1e3)
        rows += [
            step_row,
            median_row("prefill_tokens_per_s", [CONTEXT / s for s in prefills], "1/s", **facts),
            median_row("bytes_read_gb", [(weights + kv) / 1e9], "GB", **facts),
            median_row("read_gb_per_s", [bandwidth / 1e9], "GB/s", **facts),
            median_row("share_of_bandwidth_percent", [share], "%", **facts),
        ]
        print(
            f"{name} {form} batch {batch}: {step_row.value:.1f} ms a step, "
            f"{(weights + kv) / 1e9:.2f} GB read, {share:.0f} % of {bandwidth / 1e9:.1f} GB/s; "
            f"prefill {CONTEXT / sorted(prefills)[len(prefills) // 2]:.0f} tokens/s",
            flush=True,
        )
    return rows


def table_bytes(config: ModelConfig, form: str) -> int:
    """Of the embedding table, of which a step reads a row: it is counted beside the head."""
    return int(config.vocab_size * config.hidden_size * (18 / 32 if form == "q4_0" else 2))


def timed(runner: ModelRunner, batch: list[ScheduledTokens]) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    runner.execute(batch)
    return time.perf_counter() - started


def main() -> None:
    """Measure, print and perhaps record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["llama3-1b", "llama3-8b"])
    parser.add_argument("--formats", nargs="+", default=["q4_0", "bf16"], choices=["q4_0", "bf16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.shapes:
        for form in options.formats:
            rows += measure(name, form, options.batches, options.steps)
            gc.collect()
    if options.out is not None:
        versions = versions_of("torch")
        own_record(processor(), rows, versions, seed=SEED).write(options.out)


if __name__ == "__main__":
    main()
