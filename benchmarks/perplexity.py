"""Perplexity of the built-in model on a real text, as served, against its weights in float32.

The text is the Python language reference as every CPython carries it for ``help()``
(``pydoc_data.topics``, PSF licence): nothing is downloaded, and the same Python reads the same
text. It is cut into windows; a token is scored by all that precede it in its window. Every figure
comes out of ``headrace.LLM``, through the scheduler, the paged cache and the kernels that serve.

    python benchmarks/perplexity.py --out benchmarks/records/cpu-zen4-perplexity.json
"""

from __future__ import annotations

import argparse
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

from headrace import LLM, SamplingParams
from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, own_record
from headrace.checkpoint.resolve import resolve
from headrace.hardware.processor import processor

WINDOW = 1024


@dataclass(frozen=True)
class Variant:
    """One way to serve the model."""

    weights: str
    kv: str
    settings: dict[str, Any]


REFERENCE = Variant("float32", "float32", {"dtype": "float32", "packed_weights": False})
VARIANTS = (
    Variant("bf16", "bf16", {"packed_weights": False}),
    Variant("q4_1", "bf16", {"packed_weights": True}),
    Variant("q4_1", "int8", {"packed_weights": True, "kv_cache_dtype": "int8"}),
)


def windows(tokens: int) -> list[list[int]]:
    """At least ``tokens`` token ids of the text, in windows of ``WINDOW``."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    ids = resolve(None).load_tokenizer().encode(text)
    count = -(-tokens // WINDOW)
    if count * WINDOW > len(ids):
        raise SystemExit(f"--tokens {tokens}: the text has {len(ids)}")
    # Evenly over the text, whose topics differ.
    stride = len(ids) // count
    return [ids[first * stride : first * stride + WINDOW] for first in range(count)]


def logprobs(variant: Variant, texts: list[list[int]]) -> list[float]:
    """Log-probability of every token but the first of each window."""
    llm = LLM(max_total_tokens=WINDOW + 1, prefix_cache=False, **variant.settings)
    params = SamplingParams(max_new_tokens=1, decoder_input_details=True)
    generations = llm.generate(texts, params, progress=False)
    return [value for one in generations for value in one.prompt_logprobs or []]


def main() -> None:
    """Measure the reference, then every variant; print and perhaps record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=51200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    texts = windows(options.tokens)
    exact = logprobs(REFERENCE, texts)
    reference = math.exp(-math.fsum(exact) / len(exact))
    rows: list[Row] = []
    for variant in (REFERENCE, *VARIANTS):
        values = exact if variant is REFERENCE else logprobs(variant, texts)
        perplexity = math.exp(-math.fsum(values) / len(values))
        change = 100 * (perplexity / reference - 1)
        error = math.fsum(abs(a - b) for a, b in zip(values, exact, strict=True)) / len(values)
        print(
            f"weights {variant.weights:8} KV {variant.kv:8} perplexity {perplexity:.4f} "
            f"({change:+.3f} %), log-probability error {error:.4f} on average",
            flush=True,
        )
        conditions: dict[str, str | float | int | bool] = {"scored_tokens": len(values)}
        for metric, value, unit in (
            ("perplexity", perplexity, "1"),
            ("perplexity_change", change, "%"),
            ("logprob_error_mean", error, "nat"),
        ):
            rows.append(
                Row(
                    metric=metric,
                    value=value,
                    unit=unit,
                    samples=[value],
                    context=WINDOW,
                    weights=variant.weights,
                    kv=variant.kv,
                    conditions=conditions,
                )
            )
    if options.out is not None:
        versions = versions_of("torch") | {"python": platform.python_version()}
        own_record(processor(), rows, versions, model="SmolLM2-135M-Instruct Q4_1").write(
            options.out
        )


if __name__ == "__main__":
    main()
