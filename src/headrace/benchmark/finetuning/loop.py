"""A bare training loop with fixed-length rows, timed a step at a time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from headrace.benchmark.finetuning.workloads import Workload

_GIB = 2**30
_DEPTH_OF_SCHEDULE = 1000


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Measured steps.

    Attributes:
        step_ms: Whole steps: forward, backward, optimizer, schedule.
        forward_backward_ms: The same steps without optimizer and schedule.
        peak_gib: Most memory that tensors held at once; 0 on a CPU.
    """

    step_ms: list[float]
    forward_backward_ms: list[float]
    peak_gib: float


class Clock:
    """Marks on the device's own timeline (CUDA events), or on the host's for a CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Remember this moment."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append(event)

    def intervals_ms(self) -> list[float]:
        """Between each mark and the next, once the device is done."""
        if self._device.type != "cuda":
            return [
                (later - first) * 1e3
                for first, later in zip(self._marks, self._marks[1:], strict=False)
            ]
        torch.cuda.synchronize(self._device)
        return [
            float(first.elapsed_time(later))
            for first, later in zip(self._marks, self._marks[1:], strict=False)
        ]


class TrainingLoop:
    """AdamW and a linear schedule over a model's adapters, on fresh random rows.

    Args:
        model: PEFT's model, fused or not, in training mode.
        workload: Shape of a step.
        vocab_size: Of the random ids.
        learning_rate: At the first step.
        seed: Of rows and dropout.
    """

    def __init__(
        self, model: Any, workload: Workload, vocab_size: int, learning_rate: float, seed: int
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(
            trained, lr=learning_rate, fused=self._device.type == "cuda"
        )
        self._schedule = torch.optim.lr_scheduler.LinearLR(
            self._optimizer, 1.0, 0.0, total_iters=_DEPTH_OF_SCHEDULE
        )
        size = (workload.rows, workload.row_tokens)
        generator = torch.Generator().manual_seed(seed)
        self._rows = [
            torch.randint(vocab_size, size, generator=generator).to(self._device) for _ in range(8)
        ]
        self._next = 0
        torch.manual_seed(seed)

    def _forward_backward(self) -> torch.Tensor:
        ids = self._rows[self._next % len(self._rows)]
        self._next += 1
        loss: torch.Tensor = self._model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _update(self) -> None:
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)

    def losses(self, steps: int) -> list[float]:
        """Train ``steps`` steps; the loss of each."""
        found = []
        for _ in range(steps):
            found.append(self._forward_backward())
            self._update()
        return [float(loss) for loss in found]

    def time(self, warmups: int, steps: int) -> StepTimes:
        """Time ``steps`` steps after ``warmups``; the host may run ahead, as in training."""
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        for _ in range(warmups):
            self._forward_backward()
            self._update()
        clock = Clock(self._device)
        clock.mark()
        for _ in range(steps):
            self._forward_backward()
            clock.mark()
            self._update()
            clock.mark()
        intervals = clock.intervals_ms()
        forward_backward, updates = intervals[::2], intervals[1::2]
        whole = [sum(pair) for pair in zip(forward_backward, updates, strict=True)]
        peak = torch.cuda.max_memory_allocated(self._device) / _GIB if on_gpu else 0.0
        return StepTimes(whole, forward_backward, peak)
