"""The devices of this machine, and the placement of a run on them."""

from __future__ import annotations

import msgspec
import torch
from rich.console import Console

from headrace.checkpoint.config import ModelConfig
from headrace.finetuning.placement.choose import choose_placement
from headrace.finetuning.placement.memory_plan import MemoryPlan
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.report import GIB, plan_table
from headrace.finetuning.run_workload import workload_of
from headrace.finetuning.settings import FinetuneSettings
from headrace.hardware.device import multiplies_bfloat16, resolve_device
from headrace.hardware.memory import available_bytes
from headrace.hardware.processor import usable_cores
from headrace.link.errors import ConfigurationError


def decide_placement(
    settings: FinetuneSettings, config: ModelConfig, row_tokens: int, console: Console
) -> FinetuneSettings:
    """The settings with ``device``, ``placement`` and ``processes`` filled in.

    On a CPU a run is one process unless a placement is forced: several would share the same cores.
    Where the device cannot multiply bfloat16 well, a base asked for in it is held in float32.

    Args:
        settings: As the user gave them.
        config: The base model.
        row_tokens: Tokens of the longest row.
        console: Where the memory plan is shown.

    Raises:
        ConfigurationError: more processes than devices, or a run that does not fit.
    """
    device = resolve_device(settings.device)
    on_gpu = device.type == "cuda"
    if settings.base_precision == "bf16" and not multiplies_bfloat16(device):
        console.print("this processor has no fast bfloat16 products: the base is held in float32")
        settings = msgspec.structs.replace(settings, base_precision="fp32")
    devices = torch.cuda.device_count() if on_gpu else usable_cores()
    count = _processes(settings, devices, on_gpu)
    forced = None if settings.placement == "auto" else Placement(settings.placement)
    if not on_gpu and forced is None:
        forced = Placement.SINGLE if count == 1 else Placement.DDP
    memory = available_bytes(device) // (1 if on_gpu else count)
    plan = choose_placement(
        config, workload_of(settings, row_tokens, on_gpu), memory, count, forced
    )
    placement = plan.placement
    if placement.shards and settings.base_precision in ("fp8", "4bit"):
        raise ConfigurationError(
            f"`--base-precision {settings.base_precision}` holds the whole base on each device: "
            f"the placement can be single or ddp, not {placement}"
        )
    _show_plan(plan, memory, console)
    return msgspec.structs.replace(
        settings,
        device=device.type,
        placement=str(placement),
        processes=1 if placement is Placement.SINGLE else count,
    )


def _processes(settings: FinetuneSettings, devices: int, on_gpu: bool) -> int:
    kind = "GPUs" if on_gpu else "processor cores"
    asked = settings.processes
    if asked is not None and asked > devices:
        raise ConfigurationError(
            f"`--processes` must be at most {devices}, the {kind} of this machine, got {asked}"
        )
    if settings.placement == "single":
        if asked not in (None, 1):
            raise ConfigurationError(f"`--placement single` is one process, not {asked}")
        return 1
    if settings.placement != "auto":
        count = asked or devices
        if count < 2:
            raise ConfigurationError(
                f"`--placement {settings.placement}` needs at least 2 {kind}, there is {devices}"
            )
        return count
    return asked or (devices if on_gpu else 1)


def _show_plan(plan: MemoryPlan, memory: int, console: Console) -> None:
    console.print(plan_table(plan))
    verdict = "it fits" if plan.fits(memory) else "it may not fit"
    console.print(f"{memory / GIB:.2f} GiB are free on each device: {verdict}")
