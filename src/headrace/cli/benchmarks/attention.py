"""``headrace bench attention``: attention over pages against its floor."""

from __future__ import annotations

from typing import Any

import click

from headrace.cli.benchmarks.kernel_run import kernel_options, run_kernels
from headrace.cli.benchmarks.options import Integers


@click.command("attention", context_settings={"max_content_width": 96})
@click.option("--batches", type=Integers(), default=(1, 8, 32), help="Of decode steps. [1,8,32]")
@click.option("--contexts", type=Integers(), default=(128, 2048), help="Of those. [128,2048]")
@click.option("--prefills", type=Integers(), default=(128, 512), help="Prompt lengths. [128,512]")
@kernel_options
def command(
    batches: tuple[int, ...], contexts: tuple[int, ...], prefills: tuple[int, ...], **options: Any
) -> int:
    """Time attention of a model's shape: decode steps, then whole prompts.

    The floor is the larger of bytes / bandwidth and operations / matmul rate, both measured on
    this device in the same run.
    """
    from headrace.benchmark.kernels.measure import attention_cases

    return run_kernels(
        "attention",
        lambda config, item, _: attention_cases(config, batches, contexts, prefills, item),
        **options,
    )
