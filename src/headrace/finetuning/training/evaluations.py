"""Held-out losses in a trainer's history: which was best, and how long ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_LOSS = "eval_loss"
History = Sequence[Mapping[str, Any]]


def best_step(history: History) -> int | None:
    """The step of the lowest held-out loss after training began; ``None``: never evaluated."""
    evaluations = [entry for entry in history if _LOSS in entry and entry["step"] > 0]
    if not evaluations:
        return None
    return int(min(evaluations, key=lambda entry: entry[_LOSS])["step"])


class EarlyStop(TrainerCallback):
    """Saves at each better held-out loss and ends the run when none came for a while.

    Its state is the trainer's history, so that a resumed run counts on.

    Args:
        patience: Evaluations without a better loss.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        """Look at the loss that was just measured."""
        best = best_step(state.log_history)
        if best is None:
            return
        since = [e for e in state.log_history if _LOSS in e and e["step"] > best]
        if not since:
            control.should_save = True
        elif len(since) >= self._patience:
            control.should_training_stop = True
