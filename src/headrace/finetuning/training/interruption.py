"""SIGTERM and SIGINT: the step in progress is finished and saved, then the run ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from headrace.finetuning.exit_status import ExitStatus


class Interruption(TrainerCallback):
    """Turns a signal into a checkpoint and an early end, on all processes at the same step.

    Attributes:
        happened: Whether the run ended for a signal.
    """

    def __init__(self) -> None:
        self.happened = False
        self._received = False
        self._training = False
        self._group: dist.ProcessGroup | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            raise SystemExit(ExitStatus.INTERRUPTED)
        self._received = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """From now on there is something to save."""
        self._training = True
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # On the host, so that asking does not wait for the device.
            self._group = dist.new_group(backend="gloo")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop if any process was told to."""
        if self._told():
            self.happened = True
            control.should_save = True
            control.should_training_stop = True

    def _told(self) -> bool:
        if self._group is None:
            return self._received
        flag = torch.tensor([int(self._received)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())
