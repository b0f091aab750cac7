"""What ``gemm``, ``attention`` and ``kernels`` have in common: options, the run, the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.benchmarks.options import out_option

if TYPE_CHECKING:
    from headrace.checkpoint.config import ModelConfig
    from headrace.kernels.case import KernelCase

Cases = Callable[["ModelConfig", int, int], "list[KernelCase]"]
"""From a shape, bytes of an activation and bytes of a residual to what is timed."""


def kernel_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options of every kernel benchmark."""
    for option in (
        out_option,
        click.option("--runs", type=click.IntRange(min=1), default=20, help="[20]"),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [all cores]"),
        click.option("--dtype", default="auto", help="[auto: bfloat16]"),
        click.option("--device", default="auto", help="auto, cpu or cuda. [auto]"),
        click.option("--backend", default="auto", help="auto, native, triton or torch. [auto]"),
        click.option(
            "--model", default="smollm2-135m", help="Built-in shape that gives the sizes. "
            "[smollm2-135m]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def run_kernels(
    what: str,
    cases_of: Cases,
    *,
    model: str,
    backend: str,
    device: str,
    dtype: str,
    threads: int | None,
    runs: int,
    out: Path | None,
) -> int:
    """Measure, show against the floors, record."""
    from rich import box
    from rich.table import Table

    from headrace.benchmark.kernels.ceilings import measure_ceilings
    from headrace.benchmark.kernels.measure import measure_kernels
    from headrace.benchmark.kernels.workbench import BLOCK_SIZE, Workbench, check_fits
    from headrace.benchmark.measured_device import MeasuredDevice
    from headrace.benchmark.record import median_row, own_record, record_path
    from headrace.benchmark.summary import Summary
    from headrace.benchmark.tables import number
    from headrace.checkpoint.shapes import shape
    from headrace.cli.benchmarks.terminal import live_progress, wide_console
    from headrace.hardware.processor import usable_cores
    from headrace.link.errors import ConfigurationError
    from headrace.modeling.backends.choose import choose_backend

    config = shape(model)
    choice = choose_backend(
        backend, device, dtype,
        head_dim=config.head_dim, block_size=BLOCK_SIZE, threads=threads,
    )  # fmt: skip
    operations = choice.backend.operations
    cases = cases_of(
        config, operations.activation_dtype.itemsize, operations.residual_dtype.itemsize
    )
    longest = max(case.context for case in cases)
    if longest > config.max_position:
        raise ConfigurationError(
            f"a context of {longest} tokens exceeds the {config.max_position} positions of {model}"
        )
    most_sequences = max(case.sequences for case in cases)
    check_fits(choice, config, most_sequences, longest)
    measured_device = MeasuredDevice(choice.device)
    name = measured_device.name
    path = record_path(out, name, f"{what}-{model}")
    console = wide_console()
    ceilings = measure_ceilings(
        choice.device, operations.activation_dtype, threads or usable_cores()
    )
    console.print(
        f"{name}, backend {choice.backend.name}, {choice.dtype_name}; measured now: "
        f"{ceilings.bytes_per_second / 1e9:,.1f} GB/s, "
        f"{ceilings.operations_per_second / 1e12:,.2f} TFLOP/s"
    )
    bench = Workbench.build(
        choice,
        config,
        tokens=max(case.tokens for case in cases),
        rows=most_sequences,
        length=longest,
    )
    with live_progress(console, len(cases)) as advance:
        rows = list(measure_kernels(bench, cases, ceilings, runs, advance))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    for column in (
        "sequences", "tokens", "context", "floor us", "p50 us", "lowest", "p99", "of the floor",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for measured, floor in zip(rows[::2], rows[1::2], strict=True):
        summary = Summary.of(measured.samples)
        table.add_row(
            str(measured.conditions["kernel"]),
            str(measured.batch),
            str(measured.conditions["tokens"]),
            str(measured.context or ""),
            number(floor.value),
            number(summary.p50),
            number(summary.lowest),
            number(summary.p99),
            f"{100 * floor.value / summary.p50:.0f} %",
        )
    console.print(table)
    if any(
        floor.value > measured.value for measured, floor in zip(rows[::2], rows[1::2], strict=True)
    ):
        console.print(
            "above 100 %: what it reads was still in a cache, as in a step, or it reads faster "
            "than the plain copy and sum that the bandwidth was measured with"
        )
    rows += [
        median_row("bandwidth_gb_per_s", [ceilings.bytes_per_second / 1e9], "GB/s"),
        median_row("matmul_tflop_per_s", [ceilings.operations_per_second / 1e12], "TFLOP/s"),
    ]
    facts: dict[str, Any] = {"driver": measured_device.driver, "seed": 0, "model": model}
    own_record(name, rows, measured_device.versions(), **facts).write(path)
    console.print(f"record: {path}")
    return 0
