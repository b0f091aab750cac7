"""Measurements as rows of a record, and as a table for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from headrace.benchmark.finetuning.compare import OURS, AdapterOptions, Measurement
from headrace.benchmark.finetuning.workloads import peak_tflops
from headrace.benchmark.record import Condition, Row, median_row
from headrace.benchmark.tables import number
from headrace.checkpoint.config import ModelConfig


def rows_of(
    measurement: Measurement, shape: ModelConfig, adapters: AdapterOptions, device_name: str
) -> list[Row]:
    """Every figure of one measurement; none where memory did not suffice."""
    times, workload = measurement.times, measurement.workload
    if times is None:
        return []
    conditions: dict[str, Condition] = {
        "checkpointing": workload.checkpointing,
        "rank": adapters.rank,
        "dropout": adapters.dropout,
        "targets": ",".join(adapters.targets),
    }

    def row(metric: str, samples: Sequence[float], unit: str) -> Row:
        return median_row(
            metric,
            samples,
            unit,
            batch=workload.rows,
            context=workload.row_tokens,
            weights=workload.precision.value,
            conditions=conditions,
        )

    found = [
        row("train_step_ms", times.step_ms, "ms"),
        row("train_forward_backward_ms", times.forward_backward_ms, "ms"),
        row("train_tokens_per_s", [workload.tokens / ms * 1e3 for ms in times.step_ms], "1/s"),
    ]
    peak = peak_tflops(device_name)
    if peak is not None:
        flops = workload.model_flops(shape)
        rates = [flops / (ms * 1e-3) / (peak * 1e12) for ms in times.step_ms]
        found.append(row("model_flop_utilisation", rates, "ratio"))
    if times.peak_gib:
        found.append(row("peak_memory_gib", [times.peak_gib], "GiB"))
    if measurement.trainer_ms:
        found.append(row("trainer_step_ms", measurement.trainer_ms, "ms"))
    if measurement.losses:
        found.append(row("last_loss_without_dropout", measurement.losses[-1:], "nats"))
    return found


def comparison_table(
    measurements: Iterable[Measurement], shape: ModelConfig, device_name: str
) -> Table:
    """A line a measurement: step, tokens a second, utilisation, memory, loss."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name in ("system", "rows x tokens"):
        table.add_column(name, no_wrap=True)
    heads = (
        "step ms",
        "in the trainer",
        "forward+backward ms",
        "tokens/s",
        "MFU",
        "peak GiB",
        "loss",
        "speed-up",
    )
    for name in heads:
        table.add_column(name, justify="right")
    stock: dict[object, float] = {}
    peak = peak_tflops(device_name)
    for measurement in measurements:
        workload, times = measurement.workload, measurement.times
        label = [measurement.system, workload.name]
        if times is None:
            table.add_row(*label, "out of memory")
            continue
        step = statistics.median(times.step_ms)
        utilisation = "-"
        if peak is not None:
            rate = workload.model_flops(shape) / (step * 1e-3) / (peak * 1e12)
            utilisation = f"{rate:.1%}"
        ratio = "-"
        if measurement.system == OURS and workload in stock:
            ratio = f"{stock[workload] / step:.2f}x"
        elif measurement.system != OURS:
            stock[workload] = step
        table.add_row(
            *label,
            number(step),
            _against(step, measurement.trainer_ms),
            number(statistics.median(times.forward_backward_ms)),
            number(workload.tokens / step * 1e3),
            utilisation,
            number(times.peak_gib) if times.peak_gib else "-",
            f"{measurement.losses[-1]:.4f}" if measurement.losses else "-",
            ratio,
        )
    return table


def _against(step: float, trainer_ms: list[float]) -> str:
    """The trainer's step, and what it adds to that of the bare loop."""
    if not trainer_ms:
        return "-"
    found = statistics.median(trainer_ms)
    return f"{number(found)} ({found / step - 1:+.1%})"
