"""Ends a run whose loss is no longer a finite number."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.failures import not_finite


class DivergenceWatch(TrainerCallback):
    """Looks at every loss that is read from the device anyway."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Refuse a loss of NaN or infinity.

        Raises:
            TrainingStopped: there is one.
        """
        for name, words in (("loss", "the training loss"), ("eval_loss", "the held-out loss")):
            value = (logs or {}).get(name)
            if isinstance(value, float) and not math.isfinite(value):
                raise not_finite(words, state.global_step, self._store)
