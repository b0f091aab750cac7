"""The memory plan of a fine-tuning run as tables for people: ``finetune --dry-run``, ``fit``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.placement.choose import choose_placement
from headrace.finetuning.placement.memory_plan import MemoryPlan
from headrace.finetuning.placement.parameter_counts import ParameterCounts, count_parameters
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import TrainingWorkload
from headrace.hardware.known_devices import KnownDevice, known_device
from headrace.link.errors import ConfigurationError

GIB = 2**30
PRECISIONS = ("bf16", "fp8", "4bit")


@dataclass(frozen=True, slots=True)
class Target:
    """So many devices of one kind."""

    device: KnownDevice
    count: int

    @property
    def title(self) -> str:
        """For people, with the memory of one device."""
        return f"{self.count} × {self.device.title} ({self.device.memory_bytes / GIB:.1f} GiB)"


REFERENCE_TARGETS = (
    Target(known_device("mi300x"), 8),
    Target(known_device("mi300x"), 1),
    Target(known_device("h200"), 1),
    Target(known_device("h100"), 1),
)
"""The devices that a dry run plans for where it is not asked for others."""


def print_report(
    console: Console,
    config: ModelConfig,
    workload: TrainingWorkload,
    targets: tuple[Target, ...] = REFERENCE_TARGETS,
    *,
    processes: int | None = None,
    placement: Placement | None = None,
) -> None:
    """Print parameters, then for each target which base precision fits, and how its bytes add up.

    Args:
        console: Where to.
        config: The base model.
        workload: What one device computes in a step; its base precision is what is detailed.
        targets: Devices to plan for.
        processes: Devices of each target that are used; ``None``: all.
        placement: Forced; ``None``: the simplest that fits.

    Raises:
        ConfigurationError: a target module that matches nothing.
    """
    counts = count_parameters(config, workload.rank, workload.target_modules)
    print_counts(console, counts)
    console.print()
    console.print(describe_workload(workload))
    console.print(
        "GiB that one device holds at the peak of a step, and the placement; "
        "below it the same with gradient checkpointing\n"
    )
    console.print(fit_table(config, workload, targets, processes=processes, placement=placement))
    for target in targets[:1]:
        count = _devices_used(target, processes)
        plan = best_plan(config, workload, target.device.memory_bytes, count, placement)
        console.print()
        console.print(f"How that adds up on {target.title}, {workload.base_precision}:\n")
        console.print(plan_table(plan))


def print_counts(console: Console, counts: ParameterCounts) -> None:
    """The three numbers, one a line."""
    console.print(f"trainable parameters  {counts.trainable:>18,}")
    console.print(f"frozen parameters     {counts.frozen:>18,}")
    console.print(f"all parameters        {counts.total:>18,}")


def describe_workload(workload: TrainingWorkload) -> str:
    """One line: what a step of one device is."""
    pieces = workload.fused
    on = [name for name in pieces.__dataclass_fields__ if getattr(pieces, name)]
    fused = "all pieces fused" if len(on) == len(pieces.__dataclass_fields__) else ", ".join(on)
    return (
        f"LoRA r={workload.rank} on {', '.join(workload.target_modules)}; "
        f"{workload.rows} rows of {workload.row_tokens:,} tokens a device; "
        f"adapters {workload.adapter_dtype}, dropout {workload.dropout:g}; "
        f"{fused or 'nothing fused'}"
    )


def fit_table(
    config: ModelConfig,
    workload: TrainingWorkload,
    targets: tuple[Target, ...],
    *,
    processes: int | None = None,
    placement: Placement | None = None,
) -> Table:
    """Targets down, base precisions across; two lines a cell: as asked, and with checkpointing."""
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column("devices", no_wrap=True)
    for precision in PRECISIONS:
        table.add_column(precision, no_wrap=True)
    for target in targets:
        for checkpointing in dict.fromkeys((workload.gradient_checkpointing, True)):
            cells = []
            for precision in PRECISIONS:
                asked = replace(
                    workload, base_precision=precision, gradient_checkpointing=checkpointing
                )
                count = _devices_used(target, processes)
                memory = target.device.memory_bytes
                plan = best_plan(config, asked, memory, count, placement)
                cells.append(_cell(plan, memory))
            first = checkpointing == workload.gradient_checkpointing
            table.add_row(target.title if first else "  with gradient checkpointing", *cells)
    return table


def best_plan(
    config: ModelConfig,
    workload: TrainingWorkload,
    device_bytes: int,
    count: int,
    placement: Placement | None = None,
) -> MemoryPlan:
    """The placement chosen, or where none fits the one that needs least, to show how far off it is.

    Raises:
        ConfigurationError: a target module that matches nothing.
    """
    count_parameters(config, workload.rank, workload.target_modules)
    try:
        return choose_placement(config, workload, device_bytes, count, placement)
    except ConfigurationError:
        last = Placement.SINGLE if count == 1 else Placement.ZERO3
        return choose_placement(config, workload, device_bytes, count, last)


def plan_table(plan: MemoryPlan) -> Table:
    """Each part's bytes on one device and the arithmetic, then the sum."""
    where = "one device" if plan.devices == 1 else f"each of {plan.devices} devices"
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    table.add_column(f"{plan.placement} on {where}", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("how", overflow="fold")
    for part in plan.parts:
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", part.how)
    table.add_row("sum", f"{plan.total_bytes / GIB:.2f}", f"peak {plan.peak}")
    return table


def _cell(plan: MemoryPlan, device_bytes: int) -> str:
    needed = f"{plan.total_bytes / GIB:6.1f}"
    if plan.fits(device_bytes):
        return f"{needed}  fits, {plan.placement}"
    return f"{needed}  does not fit"


def _devices_used(target: Target, processes: int | None) -> int:
    return target.count if processes is None else min(processes, target.count)
