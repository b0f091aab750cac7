"""``headrace bench kernels``: every kernel of a step against its floor."""

from __future__ import annotations

from typing import Any

import click

from headrace.cli.benchmarks.kernel_run import kernel_options, run_kernels
from headrace.cli.benchmarks.options import Integers


@click.command("kernels", context_settings={"max_content_width": 96})
@click.option("--tokens", type=Integers(), default=(1, 32), help="Of a decode step. [1,32]")
@click.option("--context", type=click.IntRange(min=1), default=512, help="Of each. [512]")
@kernel_options
def command(tokens: tuple[int, ...], context: int, **options: Any) -> int:
    """Time every kernel of a decode step of a model's shape, alone.

    The floor is the larger of bytes / bandwidth and operations / matmul rate, both measured on
    this device in the same run.
    """
    from headrace.benchmark.kernels.measure import attention_cases, gemm_cases, row_cases

    return run_kernels(
        "kernels",
        lambda config, item, residual: [
            *row_cases(config, tokens, item, residual),
            *gemm_cases(config, tokens, item),
            *attention_cases(config, tokens, (context,), (), item),
        ],
        **options,
    )
