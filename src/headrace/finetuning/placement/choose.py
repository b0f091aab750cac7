"""Which placement a run gets: the simplest that fits."""

from __future__ import annotations

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.placement.memory_plan import MemoryPlan, plan_memory
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import TrainingWorkload
from headrace.link.errors import ConfigurationError

_GIB = 2**30


def choose_placement(
    config: ModelConfig,
    workload: TrainingWorkload,
    device_bytes: int,
    count: int,
    forced: Placement | None = None,
) -> MemoryPlan:
    """One device if there is one and it fits, else DDP if it fits, then FSDP2, then ZeRO-3.

    Args:
        config: The base model.
        workload: What one device computes in a step.
        device_bytes: Memory of one device.
        count: Devices at hand.
        forced: This placement, whether it fits or not; ``single`` uses one of them.

    Returns:
        The plan of the placement taken; ask it whether it ``fits`` where one was forced.

    Raises:
        ConfigurationError: nothing fits, saying by how much and what would help, or no device.
    """
    if count < 1:
        raise ConfigurationError(f"`count` of devices must be at least 1, got {count}")
    if forced is not None:
        return plan_memory(config, workload, forced, 1 if forced is Placement.SINGLE else count)
    candidates = (
        [Placement.SINGLE] if count == 1 else [Placement.DDP, Placement.FSDP2, Placement.ZERO3]
    )
    plans = [plan_memory(config, workload, placement, count) for placement in candidates]
    for plan in plans:
        if plan.fits(device_bytes):
            return plan
    least = min(plans, key=lambda plan: plan.total_bytes)
    raise ConfigurationError(
        f"the run does not fit: {least.placement} needs {least.total_bytes / _GIB:.1f} GiB on each "
        f"of {count} device{'s' * (count > 1)} with {device_bytes / _GIB:.1f} GiB; "
        + _what_would_help(workload)
    )


def _what_would_help(workload: TrainingWorkload) -> str:
    steps = []
    if not workload.gradient_checkpointing:
        steps.append("gradient checkpointing")
    if workload.base_precision == "bf16":
        steps.append("a base in fp8 or 4bit")
    elif workload.base_precision == "fp8":
        steps.append("a base in 4bit")
    if workload.tokens > 1:
        steps.append("fewer or shorter rows")
    steps.append("more devices")
    return f"it may fit with {' or '.join(steps)}"
