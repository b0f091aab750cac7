"""``headrace bench``: measure, record the run as a file, compare such files."""

from __future__ import annotations

import click

from headrace.cli.lazy_group import LazyGroup

_BENCHMARKS = {
    "latency": "The engine alone, no HTTP: prefill, a decode step, whole generations.",
    "offline": "Many requests at once through LLM, no HTTP: tokens a second.",
    "serve": "Open-loop load against an OpenAI- or TGI-compatible server.",
    "finetune": "Step time, tokens a second and memory of LoRA training, ours and stock PEFT.",
    "gemm": "Matrix products against their floor on this device.",
    "attention": "Attention against its floor on this device.",
    "kernels": "Every kernel against its floor on this device.",
    "compare": "Tables and plots of two or more records, side by side.",
}


@click.group("bench", cls=LazyGroup, package="headrace.cli.benchmarks", summaries=_BENCHMARKS)
def command() -> None:
    """Measure headrace and others, and keep every sample in one JSON file a run."""
