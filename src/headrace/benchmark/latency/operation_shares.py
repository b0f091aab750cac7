"""What each operation of a decode step takes, against the least that the device could need for it.

A kernel's time is how far it moves the end of what has run before: kernels overlap, and so the
times add up to the step. The matrix products of a layer go by the names of a few kernels; which
product one is follows from its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.benchmark.record import Condition, Row, median_row
from headrace.checkpoint.config import ModelConfig

METRIC = "decode_operation_us"
"""Of a row: one operation of a decode step, all layers together."""

GAPS = "between kernels"
_PRODUCT = "product"
_NAMED = (
    ("gated_", "gate and up"),
    ("silu_mul", "gate and up"),
    ("rms_norm", "norms"),
    ("rotate_and_cache", "rotation, cache"),
    ("attention", "attention"),
    ("embed", "embedding"),
    ("most_likely", "sampling"),
    ("draw_kernel", "sampling"),
    ("logprob", "sampling"),
    ("feed_kernel", "step inputs"),
    ("publish", "step inputs"),
    ("Memcpy", "step inputs"),
)
_BEFORE_PRODUCT = {
    ("norms", "rotation, cache"): "qkv",
    ("norms", "gate and up"): "gate and up",
    ("norms", "sampling"): "head",
    ("attention", "norms"): "output",
    ("gate and up", "norms"): "down",
}
"""Neighbours, before and after, of each product."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """One kernel of a trace; microseconds."""

    name: str
    start: float
    duration: float


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """Measured ceilings: bytes copied a second (read and written), multiply-adds twice a second."""

    bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True, slots=True)
class OperationShare:
    """One operation's part of a step.

    Attributes:
        microseconds: A step, all layers together.
        floor_microseconds: Bytes or arithmetic over the device's measured rates, the larger;
            ``None``: it has no work of its own.
    """

    operation: str
    microseconds: float
    floor_microseconds: float | None


def operation_times(kernels: Sequence[KernelTime]) -> dict[str, float]:
    """Operation to microseconds of a trace of steps; they add up to its length."""
    labels = _labels([kernel.name for kernel in kernels])
    times: dict[str, float] = {GAPS: 0.0}
    reached = kernels[0].start
    for kernel, label in zip(kernels, labels, strict=True):
        end = kernel.start + kernel.duration
        times[GAPS] += max(0.0, kernel.start - reached)
        advance = max(0.0, end - max(reached, kernel.start))
        times[label] = times.get(label, 0.0) + advance
        reached = max(reached, end)
    return times


def _labels(names: Sequence[str]) -> list[str]:
    labels = [next((label for part, label in _NAMED if part in name), _PRODUCT) for name in names]
    index = 0
    while index < len(labels):
        if labels[index] != _PRODUCT:
            index += 1
            continue
        end = index
        while end < len(labels) and labels[end] == _PRODUCT:
            end += 1
        before = labels[index - 1] if index else ""
        after = labels[end] if end < len(labels) else ""
        # The last down projection is followed by the final norm like the others.
        labels[index:end] = [_BEFORE_PRODUCT.get((before, after), "other")] * (end - index)
        index = end
    return labels


def floors(
    config: ModelConfig, batch: int, context: float, itemsize: int, rates: DeviceRates
) -> dict[str, float]:
    """Operation to the fewest microseconds of a decode step of ``batch`` sequences.

    Args:
        context: Mean length of a sequence's context, the new token included.
        itemsize: Bytes of a weight, an activation and a cached number.
    """
    layers, hidden, inner = config.num_layers, config.hidden_size, config.intermediate_size
    qkv_size = config.q_size + 2 * config.kv_size

    def product(rows: int, columns: int, out_size: int = itemsize) -> float:
        moved = itemsize * (rows * columns + batch * columns) + out_size * batch * rows
        multiplied = 2 * batch * rows * columns
        seconds = max(moved / rates.bytes_per_second, multiplied / rates.operations_per_second)
        return 1e6 * seconds

    def moving(entries: float, size: int = itemsize) -> float:
        return 1e6 * entries * size / rates.bytes_per_second

    return {
        "qkv": layers * product(qkv_size, hidden),
        "output": layers * product(hidden, config.q_size),
        # Gate, up and activation in one: what lies between need not be written.
        "gate and up": layers * product(2 * inner, hidden),
        "down": layers * product(hidden, inner),
        "head": product(config.vocab_size, hidden, 4),
        "attention": layers * moving(2 * batch * context * config.kv_size),
        "rotation, cache": layers * moving(2 * batch * qkv_size),
        # The sum is read and written, the projection read, the result written.
        "norms": 2 * layers * moving(4 * batch * hidden),
        "sampling": moving(batch * config.vocab_size, 4),
        "embedding": moving(2 * batch * hidden),
    }


def shares(
    kernels: Sequence[KernelTime], steps: int, least: dict[str, float]
) -> list[OperationShare]:
    """Of a trace of so many steps, the largest first."""
    found = [
        OperationShare(operation, total / steps, least.get(operation))
        for operation, total in operation_times(kernels).items()
    ]
    return sorted(found, key=lambda share: -share.microseconds)


def operation_row(
    operation: str, samples: Sequence[float], floor: float | None, batch: int, context: int
) -> Row:
    """A row of one operation; samples and floor in microseconds a step."""
    conditions: dict[str, Condition] = {"operation": operation}
    if floor is not None:
        conditions["floor_us"] = round(floor, 2)
    rounded = [round(sample, 2) for sample in samples]
    facts = {"batch": batch, "context": context, "conditions": conditions}
    return median_row(METRIC, rounded, "us", **facts)
