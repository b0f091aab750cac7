"""Every row of a data set read, checked and encoded before any weight is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from headrace.finetuning.data.encode import EncodedRow, Encoder
from headrace.finetuning.data.formats import RowFormat, choose_format
from headrace.finetuning.data.rows import BadRow, Row, RowError
from headrace.link.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class RowRules:
    """What a data set must be like.

    Attributes:
        format: ``auto`` or a kind.
        columns: ``wanted=present`` renamings.
        max_length: Longest row in tokens; ``None``: any (running text is cut up).
        limit_name: What sets ``max_length``, for messages.
    """

    format: str
    columns: Sequence[str]
    max_length: int | None
    limit_name: str


@dataclass(frozen=True)
class CheckedRows:
    """The outcome: every good row, and every bad one with its reason.

    Attributes:
        kind: ``messages``, ``prompt-completion`` or ``text``.
        count: Good rows.
        encoded: The good rows; empty where there is no tokenizer.
    """

    kind: str
    count: int
    encoded: list[EncodedRow]
    bad: list[BadRow]


def check_rows(
    read: Callable[[], Iterator[Row | BadRow]],
    name: str,
    rules: RowRules,
    encoder: Encoder | None,
) -> CheckedRows:
    """Read a data set through.

    Args:
        read: From ``find_sources``.
        name: The data set, for messages.
        encoder: ``None`` where the model comes without a tokenizer: lengths stay unknown.

    Raises:
        ConfigurationError: an empty data set, or wrong column names.
    """
    rows = read()
    bad: list[BadRow] = []
    first = None
    for item in rows:
        if isinstance(item, Row):
            first = item
            break
        bad.append(item)
    if first is None:
        if bad:
            raise ConfigurationError(f"{name}: no row can be read; the first: {bad[0]}")
        raise ConfigurationError(f"{name}: is empty; expected at least one row")
    chosen = choose_format(rules.format, first.values.keys(), rules.columns, first.file)
    if chosen.kind == "messages" and encoder is not None and not encoder.has_chat_template:
        raise ConfigurationError(
            f"{name}: holds chats, but the model has no chat template; expected `prompt` and "
            "`completion`, or `text`"
        )
    encoded: list[EncodedRow] = []
    count = 0
    for item in itertools.chain((first,), rows):
        if isinstance(item, BadRow):
            bad.append(item)
            continue
        try:
            row = _checked(item, chosen, rules, encoder)
        except RowError as error:
            bad.append(BadRow(item.file, item.line, error.field, error.reason))
            continue
        count += 1
        if row is not None:
            encoded.append(row)
    return CheckedRows(chosen.kind, count, encoded, bad)


def _checked(
    row: Row, chosen: RowFormat, rules: RowRules, encoder: Encoder | None
) -> EncodedRow | None:
    example = chosen.read(row.values)
    if encoder is None:
        return None
    encoded = encoder.encode(example)
    length = len(encoded.input_ids)
    if rules.max_length is not None and length > rules.max_length:
        raise RowError("", f"has {length:,} tokens, {rules.limit_name} allows {rules.max_length:,}")
    return encoded
