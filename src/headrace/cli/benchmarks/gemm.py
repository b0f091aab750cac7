"""``headrace bench gemm``: a model's matrix products against their floor."""

from __future__ import annotations

from typing import Any

import click

from headrace.cli.benchmarks.kernel_run import kernel_options, run_kernels
from headrace.cli.benchmarks.options import Integers


@click.command("gemm", context_settings={"max_content_width": 96})
@click.option(
    "--tokens", type=Integers(), default=(1, 8, 32, 128), help="Rows of each. [1,8,32,128]"
)
@kernel_options
def command(tokens: tuple[int, ...], **options: Any) -> int:
    """Time every matrix product of a model's shape.

    The floor is the larger of bytes / bandwidth and operations / matmul rate, both measured on
    this device in the same run. Weights are cold, as in a decode step.
    """
    from headrace.benchmark.kernels.measure import gemm_cases

    return run_kernels("gemm", lambda config, item, _: gemm_cases(config, tokens, item), **options)
