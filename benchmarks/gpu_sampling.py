"""What sampling costs: decode steps of one model under each kind of sampling, on a GPU.

    PYTHONPATH=src python benchmarks/gpu_sampling.py --out benchmarks/records/h100-sampling.json

A decode step is (time for 136 new tokens - time for 8) / 128, as in ``headrace bench latency``; the
kinds are timed in turn within each run, so that what drifts drifts for all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from headrace.benchmark.latency.cases import LONG, SHORT, Case
from headrace.benchmark.latency.engine import EngineOptions, prepare_engine
from headrace.benchmark.record import median_row, own_record
from headrace.link.sampling import SamplingParams

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"do_sample": True, "temperature": 0.7},
    "top-k 50": {"do_sample": True, "top_k": 50},
    "top-p 0.9": {"do_sample": True, "top_p": 0.9},
    "typical-p 0.9": {"do_sample": True, "typical_p": 0.9},
    "penalties": {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.2},
    "logprobs and top 5": {"logprobs": True, "top_n_tokens": 5},
    "everything": {
        "do_sample": True,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 0.9,
        "typical_p": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logprobs": True,
        "top_n_tokens": 5,
    },
    "everything without top-k": {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "typical_p": 0.95,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "logprobs": True,
        "top_n_tokens": 5,
    },
}


def main() -> None:
    """Print a line a kind and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama3-8b")
    parser.add_argument("--batches", default="64", help="comma-separated")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    batches = [int(batch) for batch in arguments.batches.split(",")]
    cases = [Case(batch, arguments.context, decode=True) for batch in batches]
    engine = prepare_engine(EngineOptions(model=arguments.model, random_weights=True), cases)
    generator, rows = engine.generator, []
    for case in cases:
        samples: dict[str, list[float]] = {name: [] for name in KINDS}
        for run in range(arguments.runs + 1):
            for name, kind in KINDS.items():
                generator.prepare(case.batch, case.length, SamplingParams(seed=0, **kind))
                short, long = (
                    generator.generate(case.batch, case.context, new_tokens).last_token
                    for new_tokens in (SHORT, LONG)
                )
                if run:
                    samples[name].append(1e3 * (long - short) / (LONG - SHORT))
        for name, times in samples.items():
            facts = {"batch": case.batch, "context": case.context, "weights": engine.weights}
            row = median_row("decode_step_ms", times, "ms", **facts, conditions={"sampling": name})
            print(f"{case.batch:4d} {name:26s} {row.value:7.3f} ms", flush=True)
            rows.append(row)
    if arguments.out is not None:
        device = engine.measured
        own_record(
            device.name,
            rows,
            device.versions(),
            driver=device.driver,
            seed=0,
            model=arguments.model,
        ).write(arguments.out)


if __name__ == "__main__":
    main()
