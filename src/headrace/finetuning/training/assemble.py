"""The trainer of a run: model, rows and what watches over them, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig

from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.run_workload import width_multiple
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.collate import Collator
from headrace.finetuning.training.divergence import DivergenceWatch
from headrace.finetuning.training.evaluations import EarlyStop
from headrace.finetuning.training.interruption import Interruption
from headrace.finetuning.training.progress import ProgressDisplay
from headrace.finetuning.training.trainer import AdapterTrainer

if TYPE_CHECKING:
    from datasets import Dataset


def assemble_trainer(
    settings: FinetuneSettings,
    arguments: SFTConfig,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    store: CheckpointStore,
    interruption: Interruption,
    train_rows: Dataset,
    evaluation_rows: Dataset | None,
    base_weights: BaseWeights | None = None,
    more_callbacks: Sequence[TrainerCallback] = (),
) -> AdapterTrainer:
    """A trainer as every run has it.

    Args:
        settings: ``device`` and ``placement`` are decided.
        arguments: Made from them.
        model: With its adapters.
        tokenizer: Of the model; gives the id of padding.
        store: Of checkpoints.
        interruption: What listens to signals.
        train_rows: With the columns of ``data.store``.
        evaluation_rows: The same; ``None``: none are held out.
        base_weights: Of a base that has none yet: they are read when it is sharded.
        more_callbacks: Of the caller.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.eos_token_id or 0
    trainer = AdapterTrainer(
        store=store,
        keep=settings.keep_checkpoints,
        base_weights=base_weights,
        chunked_head=settings.fused and Placement(settings.placement).shards,
        model=model,
        args=arguments,
        data_collator=Collator(
            pad_id,
            packed=settings.layout == "packed",
            multiple=width_multiple(settings, on_gpu=settings.device == "cuda"),
        ),
        train_dataset=train_rows,
        eval_dataset=evaluation_rows,
        processing_class=tokenizer,
        callbacks=[DivergenceWatch(store), interruption, *more_callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stop is not None:
        trainer.add_callback(EarlyStop(settings.early_stop))
    if trainer.is_world_process_zero():
        trainer.add_callback(
            ProgressDisplay(lambda: trainer.tokens_seen, trainer.accelerator.num_processes)
        )
    return trainer
