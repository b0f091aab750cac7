"""What a fine-tuning run is asked for: plain values, made once from flags and file."""

from __future__ import annotations

import msgspec

FORMATS = ("auto", "messages", "prompt-completion", "text")
LAYOUTS = ("padded", "packed", "fixed")
TARGETS_OF_LOSS = ("completions", "all")
PLACEMENTS = ("auto", "single", "ddp", "fsdp2", "zero3")
BASE_PRECISIONS = ("bf16", "fp32", "fp8", "4bit")
SCHEDULES = ("linear", "cosine", "constant")
ALL_LINEAR = "all-linear"


class FinetuneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one run.

    Attributes:
        model: Directory, GGUF file or hub id; ``None``: the built-in model.
        revision: Branch, tag or commit of a hub id.
        data: JSONL file, Parquet file, or directory of them or of a saved ``datasets`` data set.
        out: Directory for the adapter, checkpoints and logs.
        format: What a row holds, one of ``FORMATS``; ``auto``: as the column names say.
        columns: ``wanted=present`` renamings of columns.
        eval_data: Held-out rows, in any form that ``data`` may take.
        eval_fraction: Share of ``data`` held out where there is no ``eval_data``.
        train_on: ``completions``: loss on completions and assistant turns only; ``all``.
        layout: ``padded`` rows, ``packed`` rows that do not see each other, or the running text
            cut into ``fixed`` rows.
        max_length: Tokens in the longest row (packed and fixed: in every row); ``None``: the
            model's own limit.
        skip_bad_rows: Train on the good rows where some are bad.
        r: Rank of the adapters.
        alpha: Their scale is ``alpha / r``.
        dropout: Probability that an input of an adapter is dropped.
        target_modules: Names of the linear modules that get adapters, or ``all-linear``.
        adapter: Adapter directory to start from instead of a fresh adapter.
        base_precision: Of the frozen base, one of ``BASE_PRECISIONS``.
        epochs: Passes over the data.
        max_steps: Optimizer steps; wins over ``epochs``.
        batch_size: Rows in one forward pass of one process.
        accumulate: Forward passes in one optimizer step.
        learning_rate: Highest of the schedule.
        schedule: How the learning rate falls, one of ``SCHEDULES``.
        warmup_steps: Steps over which it first rises.
        weight_decay: AdamW's, on matrices.
        max_grad_norm: Gradients are scaled down to this norm; 0: never.
        gradient_checkpointing: Recompute activations in the backward pass.
        fused: Fused norms, rotary, SwiGLU, LoRA linears and cross-entropy.
        seed: Of initial adapters, dropout and the order of rows.
        deterministic: Refuse operations that do not repeat bit for bit.
        log_every: Steps between two readings of the loss.
        eval_every: Steps between two evaluations; ``None``: once an epoch.
        early_stop: Evaluations without a better loss after which the run ends.
        save_every: Steps between two checkpoints; ``None``: once an epoch.
        keep_checkpoints: Newest checkpoints that are kept.
        device: ``auto``, ``cpu`` or ``cuda`` (which is also what torch calls an AMD GPU).
        placement: One of ``PLACEMENTS``.
        processes: Training processes, one a device; ``None``: as the placement needs.
        merge: Also write the base with the adapter merged into it.
        resume: Continue the run that ``out`` holds.
        dry_run: Check the data and plan the memory only.
    """

    data: str
    out: str | None = None
    model: str | None = None
    revision: str | None = None
    format: str = "auto"
    columns: tuple[str, ...] = ()
    eval_data: str | None = None
    eval_fraction: float = 0.0
    train_on: str = "completions"
    layout: str = "padded"
    max_length: int | None = None
    skip_bad_rows: bool = False
    r: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")
    adapter: str | None = None
    base_precision: str = "bf16"
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 2
    accumulate: int = 1
    learning_rate: float = 2e-4
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    fused: bool = True
    seed: int = 0
    deterministic: bool = False
    log_every: int = 10
    eval_every: int | None = None
    early_stop: int | None = None
    save_every: int | None = None
    keep_checkpoints: int = 2
    device: str = "auto"
    placement: str = "auto"
    processes: int | None = None
    merge: bool = False
    resume: bool = False
    dry_run: bool = False
