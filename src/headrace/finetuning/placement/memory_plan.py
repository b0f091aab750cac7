"""The bytes that one device holds at the peak of a training step, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import EMBEDDING, FINAL_NORM, HEAD, expected_tensors
from headrace.checkpoint.sizes import quantized_weight_bytes
from headrace.checkpoint.weight_formats import WEIGHT_FORMATS, WeightFormat
from headrace.finetuning.placement.activations import (
    backward_bytes,
    loss_bytes,
    saved_bytes,
)
from headrace.finetuning.placement.effective_pieces import effective_pieces
from headrace.finetuning.placement.parameter_counts import (
    ParameterCounts,
    adapter_parameters,
    count_parameters,
    projection_shapes,
)
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import (
    ADAPTER_DTYPES,
    BASE_FORMATS,
    TrainingWorkload,
)
from headrace.link.errors import ConfigurationError

__all__ = ["MemoryPart", "MemoryPlan", "Placement", "plan_memory"]

GPU_CONTEXT_BYTES = 800 * 2**20
"""The driver's context and loaded kernels, outside torch's allocator."""

CPU_PROCESS_BYTES = 640 * 2**20
"""Resident memory of a training process that has imported everything and loaded nothing."""

COMMUNICATION_BYTES = 512 * 2**20
"""Buffers of NCCL or RCCL for the communicators of one node."""

GPU_HOLES_BYTES, GPU_HOLES_SHARE = 480 * 2**20, 0.055
"""What torch's allocator holds beyond what is allocated: at least, and of what comes and goes."""

CHECKPOINTED_HOLES_SHARE = 0.6
"""And of what computes a layer again: its buffers find no place among those of other sizes."""

CPU_HOLES_SHARE = 0.4
"""Share of what comes and goes in a step that the C library keeps beyond it."""

ZERO3_LIVE_PARAMETERS = 10**9
"""DeepSpeed's ``stage3_max_live_parameters``: most parameters gathered at once."""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One kind of memory on one device.

    Attributes:
        name: What it is.
        bytes: On one device.
        how: The arithmetic, for people.
        allocated: Taken through torch's allocator, so that ``max_memory_allocated`` counts it.
    """

    name: str
    bytes: int
    how: str
    allocated: bool = True


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What one of ``devices`` holds at the peak of a step.

    Attributes:
        parts: In the order in which they are listed.
        peak: Where in the step the peak is, in words.
    """

    placement: Placement
    devices: int
    workload: TrainingWorkload
    parameters: ParameterCounts
    parts: tuple[MemoryPart, ...]
    peak: str

    @property
    def total_bytes(self) -> int:
        """All that one device must have."""
        return sum(part.bytes for part in self.parts)

    @property
    def allocated_bytes(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` should say."""
        return sum(part.bytes for part in self.parts if part.allocated)

    def fits(self, device_bytes: int) -> bool:
        """Whether a device with so much memory holds it."""
        return self.total_bytes <= device_bytes


def plan_memory(
    config: ModelConfig, workload: TrainingWorkload, placement: Placement, devices: int
) -> MemoryPlan:
    """The memory that one device needs.

    Args:
        config: The base model.
        workload: What one device computes in a step.
        placement: How the run is spread.
        devices: Over how many.

    Raises:
        ConfigurationError: a number of devices that the placement cannot use, or a target module
            that matches nothing.
    """
    if devices < 1 or (placement is Placement.SINGLE and devices != 1):
        raise ConfigurationError(f"placement {placement} cannot use {devices} devices")
    pieces = effective_pieces(config, workload.fused, placement)
    workload = replace(workload, fused=pieces)
    shares = devices if placement.shards else 1
    counts = count_parameters(config, workload.rank, workload.target_modules)
    parts = [
        _weights(config, workload, shares),
        *_gathered(config, workload, placement, devices),
        *_trained(config, workload, placement, shares),
    ]
    step, peak = _step(config, workload)
    parts += step
    workspace = _workspace(config, workload)
    if workspace is not None:
        parts.append(workspace)
    parts += _outside(step, workload)
    if devices > 1:
        parts.append(
            MemoryPart(
                "communication", COMMUNICATION_BYTES, "NCCL or RCCL buffers", allocated=False
            )
        )
    return MemoryPlan(placement, devices, workload, counts, tuple(parts), peak)


def _outside(step: list[MemoryPart], workload: TrainingWorkload) -> list[MemoryPart]:
    """What the system sees beside what tensors hold.

    Args:
        step: What comes and goes: activations first, then the larger of the two moments.
        workload: The step.
    """
    coming_and_going = sum(part.bytes for part in step)
    if not workload.on_gpu:
        holes, context = ceil(CPU_HOLES_SHARE * coming_and_going), CPU_PROCESS_BYTES
        how = f"{CPU_HOLES_SHARE:.0%} of what comes and goes, which the C library keeps"
        name, what = "process", "Python and libraries"
    else:
        holes = GPU_HOLES_BYTES + ceil(GPU_HOLES_SHARE * coming_and_going)
        how = f"{GPU_HOLES_BYTES >> 20} MiB and {GPU_HOLES_SHARE:.1%} of what comes and goes"
        if workload.gradient_checkpointing:
            holes += ceil(CHECKPOINTED_HOLES_SHARE * step[-1].bytes)
            how += f", {CHECKPOINTED_HOLES_SHARE:.0%} of what is computed again"
        name, what, context = "context", "driver and kernels", GPU_CONTEXT_BYTES
    return [
        MemoryPart("fragmentation", holes, how, allocated=False),
        MemoryPart(name, context, what, allocated=False),
    ]


def _weights(config: ModelConfig, workload: TrainingWorkload, shares: int) -> MemoryPart:
    format = WEIGHT_FORMATS[BASE_FORMATS[workload.base_precision]]
    whole = {"bf16": "bfloat16", "fp32": "float32"}.get(workload.base_precision)
    total = quantized_weight_bytes(config, format, whole or "bfloat16")
    how = f"projections {format.name} ({format.meaning}), the rest bf16"
    if whole:
        how = f"{format.matrix_bytes(1, 1)} bytes a parameter"
    if workload.base_precision == "fp8" and workload.fp8_transposed:
        total += _projection_bytes(config, format) * config.num_layers
        how += ", projections a second time, transposed"
    if shares > 1:
        how += f", over {shares} devices"
    return MemoryPart("frozen weights", ceil(total / shares), how)


def _trained(
    config: ModelConfig, workload: TrainingWorkload, placement: Placement, shares: int
) -> list[MemoryPart]:
    count = adapter_parameters(config, workload.rank, workload.target_modules)
    width = ADAPTER_DTYPES[workload.adapter_dtype]
    states = 2 if width == 4 else 3
    over = f", over {shares} devices" if shares > 1 else ""
    moments = "two float32 moments" + ("" if states == 2 else " and a float32 copy")
    parts = [
        MemoryPart("adapters", ceil(count * width / shares), f"{count:,} × {width} bytes{over}"),
        MemoryPart("gradients", ceil(count * width / shares), f"{count:,} × {width} bytes{over}"),
        MemoryPart(
            "optimizer", ceil(count * 4 * states / shares), f"AdamW: {moments} of each{over}"
        ),
    ]
    if width == 4 and workload.autocast:
        parts.append(MemoryPart("adapter casts", count * 2, "autocast keeps a bf16 copy of each"))
    if placement is Placement.DDP:
        parts.append(
            MemoryPart("gradient buckets", count * width, "DDP reduces copies of the gradients")
        )
    return parts


def _gathered(
    config: ModelConfig, workload: TrainingWorkload, placement: Placement, devices: int
) -> list[MemoryPart]:
    """Weights that are whole on every device for the time of their use."""
    if not placement.shards or devices == 1:
        return []
    format = WEIGHT_FORMATS[BASE_FORMATS[workload.base_precision]]
    layer = _projection_bytes(config, format)
    outside = sum(
        workload.element_bytes * prod(shape)
        for name, shape in expected_tensors(config).items()
        if name in (EMBEDDING, HEAD, FINAL_NORM)
    )
    if placement is Placement.FSDP2:
        return [
            MemoryPart(
                "gathered weights",
                3 * layer + outside,
                "a layer in use, the buffer of its gathering, the next one's; embedding and head",
            )
        ]
    parameters = sum(prod(shape) for shape in expected_tensors(config).values())
    live = min(parameters, ZERO3_LIVE_PARAMETERS)
    per_parameter = layer / sum(prod(shape) for shape in projection_shapes(config).values())
    largest = max(2 * config.vocab_size * config.hidden_size, ceil(live * per_parameter))
    return [
        MemoryPart(
            "gathered weights",
            largest + layer,
            f"at most {ZERO3_LIVE_PARAMETERS:,} live parameters or the embedding, and a prefetch",
        )
    ]


def _projection_bytes(config: ModelConfig, format: WeightFormat) -> int:
    """Of the seven projections of one layer."""
    return sum(format.matrix_bytes(*shape) for shape in projection_shapes(config).values())


def _step(config: ModelConfig, workload: TrainingWorkload) -> tuple[list[MemoryPart], str]:
    """What comes and goes, at the larger of two moments: the loss, and the last layer backward."""
    tokens = workload.tokens
    saved = saved_bytes(config, workload)
    loss = loss_bytes(config, workload)
    backward = backward_bytes(config, workload) * tokens
    kept = "what checkpointing keeps" if workload.gradient_checkpointing else "saved for backward"
    activations = MemoryPart(
        "activations", saved, f"{tokens:,} tokens × {saved // tokens:,} bytes, {kept}"
    )
    if loss >= backward:
        how = (
            "hidden states, their gradient, one piece's logits"
            if workload.fused.cross_entropy
            else f"{tokens:,} tokens × {config.vocab_size:,} × 12 bytes: log-softmax, two gradients"
        )
        return [activations, MemoryPart("head and loss", loss, how)], "at the loss"
    what = "a layer again and " if workload.gradient_checkpointing else ""
    part = MemoryPart(
        "backward of a layer",
        backward,
        f"{tokens:,} tokens × {backward // tokens:,} bytes: {what}gradients of activations",
    )
    return [activations, part], "in the last layer's backward pass"


def _workspace(config: ModelConfig, workload: TrainingWorkload) -> MemoryPart | None:
    """What a quantized base needs to be multiplied with."""
    shapes = projection_shapes(config)
    largest = max(prod(shape) for shape in shapes.values())
    if workload.fused.decoder_layer:
        # Gate and up are one matrix there.
        largest = 2 * prod(shapes["gate_proj"])
    if workload.base_precision == "4bit":
        return MemoryPart("workspace", 2 * largest, "the largest matrix in bf16, for its use")
    if workload.base_precision == "fp8":
        widest = max(max(shape) for shape in shapes.values())
        turned = 0 if workload.fp8_transposed else largest
        return MemoryPart(
            "workspace",
            workload.tokens * widest + turned,
            "the widest input in fp8" + (", the largest matrix transposed" if turned else ""),
        )
    return None
