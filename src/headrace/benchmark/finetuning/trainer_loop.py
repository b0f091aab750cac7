"""The same steps through the trainer of ``headrace finetune``: what its own loop adds."""

from __future__ import annotations

import signal
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from headrace.benchmark.finetuning.loop import Clock
from headrace.benchmark.finetuning.workloads import Workload
from headrace.finetuning.run_directory import RunDirectory
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.arguments import trainer_arguments
from headrace.finetuning.training.assemble import assemble_trainer
from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.interruption import Interruption

LOG_EVERY = 10
"""Of ``headrace finetune``: once in so many steps the loss is read, shown and logged."""

_WINDOWS = 3
"""That count, after one that does not."""


def trainer_step_ms(
    model: Any, workload: Workload, vocab_size: int, learning_rate: float, seed: int
) -> list[float]:
    """Milliseconds a step, each the mean of ``LOG_EVERY`` steps, one of which is logged.

    Args:
        model: PEFT's model, fused, on its device, in bf16.
        workload: Shape of a step.
        vocab_size: Of the random ids.
        learning_rate: At the first step.
        seed: Of rows and dropout.
    """
    device = next(model.parameters()).device
    steps = (1 + _WINDOWS) * LOG_EVERY
    marks = _Marks(device)
    with tempfile.TemporaryDirectory() as folder, _handlers_kept():
        directory = RunDirectory(Path(folder))
        settings = FinetuneSettings(
            data="",
            out=folder,
            layout="fixed",
            max_length=workload.row_tokens,
            batch_size=workload.rows,
            max_steps=steps,
            learning_rate=learning_rate,
            gradient_checkpointing=workload.checkpointing,
            log_every=LOG_EVERY,
            save_every=steps,
            seed=seed,
            device=device.type,
            placement="single",
            processes=1,
        )
        trainer = assemble_trainer(
            settings,
            trainer_arguments(settings, directory, evaluates=False, resumes=False),
            model,
            _tokenizer(),
            CheckpointStore(directory.checkpoints),
            Interruption(),
            _random_rows(workload, vocab_size, steps, seed),
            None,
            more_callbacks=[marks],
        )
        trainer.train()
    intervals = marks.clock.intervals_ms()[LOG_EVERY - 1 :]
    firsts = range(0, len(intervals), LOG_EVERY)
    return [statistics.fmean(intervals[first : first + LOG_EVERY]) for first in firsts]


class _Marks(TrainerCallback):
    """Marks the end of each step."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The optimizer's step is launched."""
        self.clock.mark()


def _random_rows(workload: Workload, vocab_size: int, steps: int, seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    size = (steps * workload.rows, workload.row_tokens)
    ids = torch.randint(vocab_size, size, generator=generator).tolist()
    lengths = [[workload.row_tokens]] * len(ids)
    return Dataset.from_dict({"input_ids": ids, "labels": ids, "lengths": lengths})


def _tokenizer() -> PreTrainedTokenizerFast:
    """The trainer wants one with a token for padding; no row is padded."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, "<pad>")), pad_token="<pad>"
    )


@contextmanager
def _handlers_kept() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
