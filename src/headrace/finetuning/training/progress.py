"""What the user sees while a run goes on: loss, speed, memory, time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_GIB = 1 << 30


class ProgressDisplay(TrainerCallback):
    """A bar on a terminal, a line at each reading of the loss elsewhere.

    Args:
        tokens_seen: Tokens that this process has trained on so far.
        processes: All of them train at about the same speed.
    """

    def __init__(self, tokens_seen: Callable[[], int], processes: int) -> None:
        self._tokens_seen = tokens_seen
        self._processes = processes
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._last = (0.0, 0, 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Start to measure."""
        self._last = (time.monotonic(), self._tokens_seen(), state.global_step)
        if self._console.is_terminal:
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Show what was just read."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._console.print(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
            # The time of an evaluation is not training time.
            self._last = (time.monotonic(), self._tokens_seen(), state.global_step)
        elif "loss" in logs:
            self._show(state, logs, args.device)

    def _show(self, state: TrainerState, logs: dict[str, Any], device: torch.device) -> None:
        now, tokens = time.monotonic(), self._tokens_seen()
        then, tokens_then, step_then = self._last
        self._last = (now, tokens, state.global_step)
        seconds = max(now - then, 1e-9)
        speed = (tokens - tokens_then) * self._processes / seconds
        steps = max(state.global_step - step_then, 1)
        left = timedelta(seconds=round((state.max_steps - state.global_step) * seconds / steps))
        text = (
            f"loss {logs['loss']:.4f}  {speed:,.0f} tokens/s  "
            f"{_memory_bytes(device) / _GIB:.1f} GiB  {left} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            self._console.print(
                f"step {state.global_step}/{state.max_steps}  {text}", soft_wrap=True
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Leave the terminal as it was."""
        self.close()

    def close(self) -> None:
        """Stop the bar; may be called again."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)
