"""A run's settings as TRL and Transformers take them."""

from __future__ import annotations

from typing import Any

from trl.trainer.sft_config import SFTConfig

from headrace.finetuning.run_directory import RunDirectory
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.distribution import distribution_arguments


def trainer_arguments(
    settings: FinetuneSettings, directory: RunDirectory, *, evaluates: bool, resumes: bool
) -> SFTConfig:
    """The trainer's configuration.

    Args:
        settings: ``device`` and ``placement`` are decided.
        directory: Where checkpoints go.
        evaluates: Whether there are held-out rows.
        resumes: A checkpoint will be continued.
    """
    on_cpu = settings.device == "cpu"
    arguments: dict[str, Any] = {
        "output_dir": str(directory.checkpoints),
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "optim": "adamw_torch" if settings.placement == "zero3" else "adamw_torch_fused",
        "bf16": settings.base_precision != "fp32",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        # A copy that the host waits for would also wait for the step before it.
        "accelerator_config": {"non_blocking": not on_cpu},
        "seed": settings.seed,
        "data_seed": settings.seed,
        "full_determinism": settings.deterministic,
        "ddp_find_unused_parameters": False,
        # The rows are encoded already, and nothing of them may be cut or dropped.
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "max_length": None,
        # A NaN must be seen; filtering it would also cost a synchronisation each step.
        "logging_nan_inf_filter": False,
        "logging_steps": settings.log_every,
        "logging_first_step": True,
        "report_to": ["tensorboard"],
        "disable_tqdm": True,
        # Our own store rotates checkpoints.
        "save_total_limit": None,
        **_when("save", settings.save_every),
        **(_when("eval", settings.eval_every) if evaluates else {"eval_strategy": "no"}),
        "eval_on_start": evaluates and not resumes,
        **distribution_arguments(settings.placement),
    }
    return SFTConfig(**arguments)


def _when(what: str, every: int | None) -> dict[str, Any]:
    if every is None:
        return {f"{what}_strategy": "epoch"}
    return {f"{what}_strategy": "steps", f"{what}_steps": every}
