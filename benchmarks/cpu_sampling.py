"""Time of choosing tokens on the CPU: the native kernels and torch's operations, side by side.

Rows of random logits, flat (standard deviation 1) and like a language model's (3). Both are called
as the sampler calls them, in turn, so that a busy machine slows both.

    python benchmarks/cpu_sampling.py --out benchmarks/records/cpu-zen4-sampling.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, own_record
from headrace.hardware.processor import processor
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.sampling.choices import DrawParameters, TokenChoices
from headrace.modeling.sampling.torch_choices import TorchChoices

MIXES: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 0.7},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "typical-p 0.95": {"typical_p": 0.95},
    "top-k 50, top-p 0.9, typical-p 0.95, temperature 0.7": {
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "typical_p": 0.95,
    },
}
SPREADS = {"flat": 1.0, "model": 3.0}
TOP = 5


def parameters_of(mix: dict[str, float], rows: int, vocab: int) -> DrawParameters:
    """The same for every row, with numbers of their own."""

    def column(name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.full(rows, mix.get(name, 1.0), dtype=np.float32)

    return DrawParameters(
        temperature=column("temperature"),
        top_k=np.full(rows, int(mix.get("top_k", vocab)), dtype=np.int64),
        top_p=column("top_p"),
        typical_p=column("typical_p"),
        uniform=np.random.default_rng(0).random(rows, dtype=np.float32),
    )


def main() -> None:
    """Measure, print and perhaps record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backend = NativeCpuBackend(threads=options.threads)
    ways: dict[str, TokenChoices] = {
        backend.instruction_set: backend.token_choices,
        "torch": TorchChoices(torch.device("cpu")),
    }
    everything = np.arange(options.rows)
    found: list[Row] = []
    for shape, spread in SPREADS.items():
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(options.rows, options.vocab, generator=generator) * spread
        greedy, _ = backend.token_choices.most_likely(logits)
        for name in ("greedy", *MIXES, f"log-probabilities, top {TOP}"):
            samples: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.repeats):
                for way, choices in ways.items():
                    started = time.perf_counter()
                    if name in MIXES:
                        asked = parameters_of(MIXES[name], options.rows, options.vocab)
                        choices.draw(logits, everything, asked)
                    elif name == "greedy":
                        choices.most_likely(logits)
                    else:
                        choices.logprobs(logits, greedy, TOP)
                    samples[way].append(1e3 * (time.perf_counter() - started))
            for way, times in samples.items():
                median = statistics.median(times)
                print(f"{shape:6} {name:54} {way:12} {median:8.2f} ms", flush=True)
                found.append(
                    Row(
                        metric="sampling_ms",
                        value=median,
                        unit="ms",
                        samples=times,
                        batch=options.rows,
                        conditions={
                            "choice": name,
                            "logits": shape,
                            "by": way,
                            "vocabulary": options.vocab,
                            "threads": options.threads,
                        },
                    )
                )
    if options.out is not None:
        own_record(processor(), found, versions_of("torch")).write(options.out)


if __name__ == "__main__":
    main()
