"""One training process from its job to its end."""

from __future__ import annotations

import json

import torch.distributed as dist
from transformers import PrinterCallback, set_seed

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.finetuning.data.store import load_rows
from headrace.finetuning.exit_status import ExitStatus
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.run_directory import Job, RunDirectory
from headrace.finetuning.training.arguments import trainer_arguments
from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.collate import Collator
from headrace.finetuning.training.curve import draw_loss_curve
from headrace.finetuning.training.distribution import join_deepspeed
from headrace.finetuning.training.divergence import DivergenceWatch
from headrace.finetuning.training.evaluations import EarlyStop, History, best_step
from headrace.finetuning.training.export import copy_adapter, write_merged
from headrace.finetuning.training.failures import not_written
from headrace.finetuning.training.interruption import Interruption
from headrace.finetuning.training.model import base_dtype, build_model
from headrace.finetuning.training.progress import ProgressDisplay
from headrace.finetuning.training.tokenizer_files import load_transformers_tokenizer
from headrace.finetuning.training.trainer import AdapterTrainer


def run(directory: RunDirectory) -> ExitStatus:
    """Train as the directory's job says, on this process's share of the devices.

    Raises:
        TrainingStopped: a loss that is not finite, or a disk that takes no checkpoint.
    """
    interruption = Interruption()
    job = directory.read_job()
    checkpoint = resolve(job.model)
    store = CheckpointStore(directory.checkpoints)
    trainer = _make_trainer(job, directory, checkpoint, store, interruption)
    _train(trainer, job, store)
    is_first = trainer.is_world_process_zero()
    history = trainer.state.log_history
    step = trainer.state.global_step
    # A merge reads the base anew: this one's memory is given back before.
    del trainer
    if dist.is_initialized():
        dist.destroy_process_group()
    if is_first:
        directory.history.write_text(json.dumps(history, indent=1))
        draw_loss_curve(history, directory.curve)
        if interruption.happened:
            _say(f"stopped by a signal at step {step}, which is saved; --resume continues")
        else:
            _export(history, job, directory, checkpoint, store)
    return ExitStatus.INTERRUPTED if interruption.happened else ExitStatus.DONE


def _make_trainer(
    job: Job,
    directory: RunDirectory,
    checkpoint: Checkpoint,
    store: CheckpointStore,
    interruption: Interruption,
) -> AdapterTrainer:
    settings = job.settings
    held_out = directory.data / "eval.arrow"
    resumes = settings.resume and store.latest() is not None
    # Before the model: under ZeRO-3 its weights are loaded in shards.
    arguments = trainer_arguments(
        settings, directory, evaluates=held_out.is_file(), resumes=resumes
    )
    if settings.placement == "zero3":
        join_deepspeed()
    # PEFT draws the initial adapter from the global generator.
    set_seed(settings.seed)
    model, unfused = build_model(settings, checkpoint, job.model_id, arguments.device)
    tokenizer = load_transformers_tokenizer(checkpoint)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = tokenizer.eos_token_id or 0
    trainer = AdapterTrainer(
        store=store,
        keep=settings.keep_checkpoints,
        chunked_head=settings.fused and Placement(settings.placement).shards,
        model=model,
        args=arguments,
        data_collator=Collator(pad_id, packed=settings.layout == "packed"),
        train_dataset=load_rows(directory.data / "train.arrow"),
        eval_dataset=load_rows(held_out) if held_out.is_file() else None,
        processing_class=tokenizer,
        callbacks=[DivergenceWatch(store), interruption],
    )
    trainer.remove_callback(PrinterCallback)
    if settings.early_stop is not None:
        trainer.add_callback(EarlyStop(settings.early_stop))
    if trainer.is_world_process_zero():
        if unfused:
            _say(f"not fused: {unfused}")
        trainer.add_callback(
            ProgressDisplay(lambda: trainer.tokens_seen, trainer.accelerator.num_processes)
        )
    return trainer


def _train(trainer: AdapterTrainer, job: Job, store: CheckpointStore) -> None:
    step = store.latest() if job.settings.resume else None
    try:
        trainer.train(resume_from_checkpoint=None if step is None else str(store.of_step(step)))
    except OSError as error:  # a log or a checkpoint
        raise not_written(error, trainer.state.global_step, store) from error


def _export(
    history: History,
    job: Job,
    directory: RunDirectory,
    checkpoint: Checkpoint,
    store: CheckpointStore,
) -> None:
    step = store.latest()
    if job.settings.early_stop is not None:
        step = best_step(history) or step
    if step is None:
        raise RuntimeError("a finished run has a checkpoint")
    copy_adapter(store.of_step(step), directory.path)
    _say(f"adapter of step {step}: {directory.path}")
    if job.settings.merge:
        write_merged(checkpoint, directory.path, directory.merged, base_dtype(job.settings))
        _say(f"merged checkpoint: {directory.merged}")


def _say(line: str) -> None:
    print(line, flush=True)
