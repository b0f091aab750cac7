"""One training process from its job to its end."""

from __future__ import annotations

import json

import torch.distributed as dist
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import set_seed

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.data.store import load_rows
from headrace.finetuning.exit_status import ExitStatus
from headrace.finetuning.run_directory import Job, RunDirectory
from headrace.finetuning.training.arguments import trainer_arguments
from headrace.finetuning.training.assemble import assemble_trainer
from headrace.finetuning.training.checkpoint_store import CheckpointStore
from headrace.finetuning.training.curve import draw_loss_curve
from headrace.finetuning.training.distribution import join_deepspeed
from headrace.finetuning.training.evaluations import History, best_step
from headrace.finetuning.training.export import copy_adapter
from headrace.finetuning.training.failures import not_written
from headrace.finetuning.training.interruption import Interruption
from headrace.finetuning.training.merge import write_merged
from headrace.finetuning.training.model import base_dtype, build_model
from headrace.finetuning.training.tokenizer_files import load_transformers_tokenizer
from headrace.finetuning.training.trainer import AdapterTrainer


def run(directory: RunDirectory) -> ExitStatus:
    """Train as the directory's job says, on this process's share of the devices.

    Raises:
        TrainingStopped: a loss that is not finite, or a disk that takes no more.
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
        try:
            directory.history.write_text(json.dumps(history, indent=1))
            draw_loss_curve(history, directory.curve)
            if interruption.happened:
                _say(f"stopped by a signal at step {step}, which is saved; --resume continues")
            else:
                _export(history, job, directory, checkpoint, store)
        except (OSError, SafetensorError) as error:
            raise not_written(error, step, store) from error
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
    if unfused and PartialState().is_main_process:
        _say(f"not fused: {unfused}")
    return assemble_trainer(
        settings,
        arguments,
        model,
        load_transformers_tokenizer(checkpoint),
        store,
        interruption,
        load_rows(directory.data / "train.arrow"),
        load_rows(held_out) if held_out.is_file() else None,
        BaseWeights(checkpoint, arguments.device) if settings.placement == "fsdp2" else None,
    )


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
