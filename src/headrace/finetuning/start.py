"""``headrace finetune`` from its settings to the launch of the training processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.finetuning.data.prepare import BadRows, PreparedData, prepare_data
from headrace.finetuning.data.rows import BadRow
from headrace.finetuning.exit_status import ExitStatus
from headrace.finetuning.launch import run_processes
from headrace.finetuning.placement.parameter_counts import count_parameters
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.report import print_report
from headrace.finetuning.requirements import check_installed
from headrace.finetuning.run_directory import Job, RunDirectory
from headrace.finetuning.run_workload import workload_of
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.worker_environment import worker_environment
from headrace.link.errors import ConfigurationError
from headrace.modeling.adapters.peft_directory import read_adapter

_REFUSED_ROWS_SHOWN = 1000
_SKIPPED_ROWS_SHOWN = 20
_MAX_RANK = 4096
_ASSUMED_ROW_TOKENS = 448
"""Of the workload that published figures are for."""


def finetune(settings: FinetuneSettings, console: Console) -> ExitStatus:
    """Check everything that can be checked without weights, then train.

    Args:
        settings: As the user gave them.
        console: Of the user.

    Returns:
        How the training processes ended; ``DONE`` for a dry run.

    Raises:
        ConfigurationError: settings, data, model or devices that do not go together.
    """

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    if not settings.dry_run:
        check_installed(("deepspeed",) if settings.placement == "zero3" else ())
    directory = _directory(settings)
    checkpoint = resolve(settings.model, settings.revision)
    if settings.adapter is not None:
        settings = _with_shape_of(settings.adapter, settings, checkpoint)
    _check_against_model(settings, checkpoint)
    data = _prepare(settings, checkpoint, tell)
    if settings.dry_run or directory is None:
        _report(settings, checkpoint, data, console, tell)
        return ExitStatus.DONE
    counts = count_parameters(checkpoint.config, settings.r, settings.target_modules)
    tell(
        f"{counts.trainable:,} trainable parameters, {counts.frozen:,} frozen, "
        f"{counts.total:,} in all"
    )
    # Only now torch is imported, to look at the devices.
    from headrace.finetuning.devices import decide_placement
    from headrace.hardware.processor import usable_cores

    decided = decide_placement(settings, checkpoint.config, data.longest_row, console)
    job = Job(
        model=str(checkpoint.path.resolve()),
        model_id=_base_name(checkpoint),
        data_hash=data.write(directory.new_data),
        settings=decided,
    )
    directory.accept(job, data.bad)
    return run_processes(
        directory.path,
        decided.processes or 1,
        directory.logs,
        worker_environment(decided, directory, usable_cores()),
    )


def _directory(settings: FinetuneSettings) -> RunDirectory | None:
    if settings.out is None:
        if not settings.dry_run:
            raise ConfigurationError("`--out` is missing: the directory for the adapter")
        return None
    directory = RunDirectory(Path(settings.out).expanduser())
    if not settings.dry_run:
        directory.claim(settings.resume)
    return directory


def _check_against_model(settings: FinetuneSettings, checkpoint: Checkpoint) -> None:
    config = checkpoint.config
    # Refuses target modules that the model does not have.
    count_parameters(config, settings.r, settings.target_modules)
    if not settings.dry_run:
        # Reads headers only: a model without its weights is refused here.
        len(checkpoint.tensors)


def _with_shape_of(
    adapter: str, settings: FinetuneSettings, checkpoint: Checkpoint
) -> FinetuneSettings:
    """The settings with the rank, scale and targets of an adapter to start from."""
    path = Path(adapter).expanduser()
    found = read_adapter(path.name, adapter, checkpoint.config, _MAX_RANK)
    first = next(iter(found.modules.values()))
    return msgspec.structs.replace(
        settings,
        adapter=str(path.resolve()),
        r=first.rank,
        alpha=first.scale * first.rank,
        target_modules=tuple(sorted({name.rpartition(".")[2] for name in found.modules})),
    )


def _prepare(
    settings: FinetuneSettings,
    checkpoint: Checkpoint,
    tell: Callable[[str], None],
) -> PreparedData:
    try:
        data = prepare_data(settings, checkpoint, tell)
    except BadRows as error:
        _tell_bad_rows(error.rows, _REFUSED_ROWS_SHOWN, tell)
        raise
    _tell_bad_rows(data.bad, _SKIPPED_ROWS_SHOWN, tell)
    if settings.early_stop is not None and data.evaluation is None and data.train is not None:
        raise ConfigurationError(
            "`--early-stop` needs held-out rows: give --eval-data or --eval-fraction"
        )
    for summary in data.summaries:
        for line in summary.lines():
            tell(line)
    return data


def _tell_bad_rows(rows: list[BadRow], shown: int, tell: Callable[[str], None]) -> None:
    for row in rows[:shown]:
        tell(str(row))
    if len(rows) > shown:
        tell(f"… and {len(rows) - shown:,} more bad rows")


def _report(
    settings: FinetuneSettings,
    checkpoint: Checkpoint,
    data: PreparedData,
    console: Console,
    tell: Callable[[str], None],
) -> None:
    """What the run would take on devices that people have."""
    row_tokens = data.longest_row
    if not row_tokens:
        row_tokens = settings.max_length or _ASSUMED_ROW_TOKENS
        origin = "--max-length" if settings.max_length else "assumed; --max-length says otherwise"
        tell(f"without a tokenizer the plan is for rows of {row_tokens:,} tokens ({origin})")
    print_report(
        console,
        checkpoint.config,
        workload_of(settings, row_tokens, on_gpu=True),
        processes=settings.processes,
        placement=None if settings.placement == "auto" else Placement(settings.placement),
    )


def _base_name(checkpoint: Checkpoint) -> str:
    """What the adapter names as its base: a hub id, or an absolute path."""
    path = Path(checkpoint.model_id).expanduser()
    return str(path.resolve()) if path.exists() else checkpoint.model_id
