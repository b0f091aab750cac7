"""The data of a run: found, checked, split, laid out, and written for the training processes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.data.check import CheckedRows, RowRules, check_rows
from headrace.finetuning.data.encode import EncodedRow, Encoder
from headrace.finetuning.data.layout import LaidOut, lay_out
from headrace.finetuning.data.rows import BadRow
from headrace.finetuning.data.sources import find_sources
from headrace.finetuning.data.store import write_rows
from headrace.finetuning.data.summary import DataSummary
from headrace.finetuning.settings import FinetuneSettings
from headrace.link.errors import ConfigurationError


class BadRows(ConfigurationError):
    """Some rows cannot be trained on, and they were not to be skipped.

    Attributes:
        rows: Each with its reason.
    """

    def __init__(self, name: str, rows: list[BadRow], total: int) -> None:
        self.rows = rows
        super().__init__(
            f"{name}: {len(rows):,} of {total:,} rows cannot be used; "
            "--skip-bad-rows trains on the others"
        )


@dataclass(frozen=True)
class PreparedData:
    """Checked rows, laid out.

    Attributes:
        train: Rows to train on; ``None`` where there was no tokenizer.
        evaluation: Held-out rows; ``None``: none were asked for.
        summaries: Of each data set.
        bad: Rows that are skipped.
    """

    train: LaidOut | None
    evaluation: LaidOut | None
    summaries: list[DataSummary]
    bad: list[BadRow]

    @property
    def longest_row(self) -> int:
        """Tokens in the longest row of a batch; 0 where there was no tokenizer."""
        rows = self.train.rows if self.train else []
        return max((len(row.input_ids) for row in rows), default=0)

    def write(self, directory: Path) -> str:
        """Write the rows into ``directory`` as ``train.arrow`` and ``eval.arrow``.

        Returns:
            A hash of all of them.
        """
        directory.mkdir(parents=True, exist_ok=True)
        hashes = [
            write_rows(directory / name, laid_out.rows)
            for name, laid_out in (("train.arrow", self.train), ("eval.arrow", self.evaluation))
            if laid_out is not None
        ]
        return "-".join(hashes)


def prepare_data(
    settings: FinetuneSettings, checkpoint: Checkpoint, tell: Callable[[str], None]
) -> PreparedData:
    """Read and check all data of a run.

    Args:
        checkpoint: The base model; its tokenizer may be absent in a dry run only.
        tell: Called with lines for the user.

    Raises:
        BadRows: rows that cannot be used.
        ConfigurationError: no data, wrong columns, a length that the model does not allow.
    """
    sources = find_sources(settings.data, "DATA")
    for unused in sources.unused:
        tell(f"{unused}: belongs neither to a train nor to a validation split: not read")
    evaluation = sources.evaluation
    if settings.eval_data is not None:
        evaluation = find_sources(settings.eval_data, "--eval-data").train
    encoder = _encoder(settings, checkpoint, tell)
    limit = _length_limit(settings, checkpoint)
    rules = RowRules(
        format=settings.format,
        columns=settings.columns,
        max_length=None if settings.layout == "fixed" else limit,
        limit_name="the model" if settings.max_length is None else "--max-length",
    )
    found = check_rows(sources.train, settings.data, rules, encoder)
    _refuse_bad(found, settings.data, settings.skip_bad_rows)
    train, held_out = found, None
    if evaluation is not None:
        name = settings.eval_data or f"{settings.data} (held-out split)"
        held_out = check_rows(evaluation, name, rules, encoder)
        _refuse_bad(held_out, name, settings.skip_bad_rows)
    elif settings.eval_fraction:
        train, held_out = _split(found, settings.eval_fraction, settings.seed, settings.data)
    laid_out, summary = _lay_out(train, settings.data, settings.layout, limit)
    summaries = [summary]
    laid_out_held = None
    if held_out is not None:
        laid_out_held, summary = _lay_out(held_out, "held out", settings.layout, limit)
        summaries.append(summary)
    prepared = PreparedData(
        laid_out, laid_out_held, summaries, found.bad + (held_out.bad if held_out else [])
    )
    _check_vocabulary(prepared, checkpoint)
    return prepared


def _encoder(
    settings: FinetuneSettings, checkpoint: Checkpoint, tell: Callable[[str], None]
) -> Encoder | None:
    try:
        tokenizer = checkpoint.load_tokenizer()
    except ConfigurationError as error:
        if not settings.dry_run:
            raise
        tell(f"{error}: rows are checked without their length in tokens")
        return None
    template = checkpoint.load_chat_template()
    return Encoder(tokenizer, template, tokenizer.eos_id, settings.train_on)


def _length_limit(settings: FinetuneSettings, checkpoint: Checkpoint) -> int:
    longest = checkpoint.max_position
    if settings.max_length is None:
        if settings.layout != "padded":
            raise ConfigurationError(
                f"`--layout {settings.layout}` needs `--max-length`, the tokens of a row"
            )
        return longest
    if settings.max_length > longest:
        raise ConfigurationError(
            f"`--max-length` must be at most {longest}, the longest row that the model allows, "
            f"got {settings.max_length}"
        )
    return settings.max_length


def _refuse_bad(found: CheckedRows, name: str, skip: bool) -> None:
    total = found.count + len(found.bad)
    if found.bad and not skip:
        raise BadRows(name, found.bad, total)
    if not found.count:
        raise ConfigurationError(
            f"{name}: none of its {total:,} rows can be used; the first: {found.bad[0]}"
        )


def _split(
    found: CheckedRows, fraction: float, seed: int, name: str
) -> tuple[CheckedRows, CheckedRows]:
    count = max(1, round(found.count * fraction))
    if count >= found.count:
        raise ConfigurationError(
            f"`--eval-fraction` {fraction:g} leaves none of the {found.count} rows of {name} "
            "to train on"
        )
    chosen = set(random.Random(seed).sample(range(found.count), count))
    parts: tuple[list[EncodedRow], list[EncodedRow]] = ([], [])
    for index, row in enumerate(found.encoded):
        parts[index in chosen].append(row)
    return (
        CheckedRows(found.kind, found.count - count, parts[0], found.bad),
        CheckedRows(found.kind, count, parts[1], []),
    )


def _lay_out(
    found: CheckedRows, name: str, layout: str, length: int
) -> tuple[LaidOut | None, DataSummary]:
    if not found.encoded:
        summary = DataSummary(name=name, kind=found.kind, rows=found.count, bad_rows=len(found.bad))
        return None, summary
    laid_out = lay_out(found.encoded, layout, length)
    if not laid_out.rows:
        total = sum(len(row.input_ids) for row in found.encoded)
        raise ConfigurationError(
            f"{name}: its {total:,} tokens do not fill one row of --max-length {length:,}"
        )
    summary = DataSummary(
        name=name,
        kind=found.kind,
        rows=found.count,
        bad_rows=len(found.bad),
        lengths=[len(row.input_ids) for row in found.encoded],
        trained_tokens=sum(row.trained_tokens for row in found.encoded),
        batch_rows=len(laid_out.rows),
        left_over_tokens=laid_out.left_over_tokens,
        rows_without_labels=laid_out.rows_without_labels,
    )
    return laid_out, summary


def _check_vocabulary(prepared: PreparedData, checkpoint: Checkpoint) -> None:
    size = checkpoint.config.vocab_size
    for laid_out in (prepared.train, prepared.evaluation):
        largest = max((max(row.input_ids) for row in laid_out.rows), default=0) if laid_out else 0
        if largest >= size:
            raise ConfigurationError(
                f"{checkpoint.path}: the tokenizer gives the id {largest}, "
                f"but the model has {size} embeddings"
            )
