"""Rows out of JSONL files, Parquet files, directories of them, and saved ``datasets`` data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from headrace.finetuning.data.rows import BadRow, Row
from headrace.link.errors import ConfigurationError

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_PARQUET = (".parquet",)
_EVALUATION_SPLITS = ("validation", "valid", "eval", "dev", "test", "held_out")
_ARROW_STATE = "state.json"
_ARROW_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class Sources:
    """What was found under the name of a data set.

    Attributes:
        train: The rows to train on.
        evaluation: The rows of a validation or test split beside them, if there is one.
        unused: Files or splits beside them that belong to neither.
    """

    train: Callable[[], Iterator[Row | BadRow]]
    evaluation: Callable[[], Iterator[Row | BadRow]] | None = None
    unused: Sequence[str] = ()


def find_sources(name: str, flag: str) -> Sources:
    """What lies under ``name``; no row is read yet.

    Args:
        name: A file or directory, as the user named it.
        flag: How the user gave it, for messages.

    Raises:
        ConfigurationError: nothing there, or nothing that headrace reads.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return Sources(_reader_of([path], flag))
        if not path.is_dir():
            raise ConfigurationError(f"{flag} `{name}`: no such file or directory")
        if (path / _ARROW_SPLITS).is_file() or (path / _ARROW_STATE).is_file():
            return _saved_data_set(path, flag)
        return _directory(path, flag)
    except OSError as error:
        raise ConfigurationError(f"{flag} `{name}`: {error.strerror}") from None


def _directory(path: Path, flag: str) -> Sources:
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and file.suffix in _JSON_LINES + _PARQUET
    )
    files = [file for file in files if file.name != "dataset_info.json"]
    if not files:
        raise ConfigurationError(
            f"{flag} `{path}`: holds no data set; expected .jsonl or .parquet files, or what "
            "`datasets` saved"
        )
    train = [file for file in files if file.stem.startswith("train")]
    splits = ([f for f in files if f.stem.startswith(name)] for name in _EVALUATION_SPLITS)
    held_out: list[Path] = next(filter(None, splits), [])
    if not train:
        train = [file for file in files if not file.stem.startswith(_EVALUATION_SPLITS)] or files
        held_out = [file for file in held_out if file not in train]
    return Sources(
        _reader_of(train, flag),
        _reader_of(held_out, flag) if held_out else None,
        [str(file) for file in files if file not in train + held_out],
    )


def _saved_data_set(path: Path, flag: str) -> Sources:
    if (path / _ARROW_STATE).is_file():
        return Sources(lambda: _arrow_rows(path, flag))
    splits = {child.name: child for child in path.iterdir() if (child / _ARROW_STATE).is_file()}
    if not splits:
        raise ConfigurationError(
            f"{flag} `{path}`: {_ARROW_SPLITS} names splits that are not there"
        )
    if "train" in splits:
        train = splits["train"]
    elif len(splits) == 1:
        train = next(iter(splits.values()))
    else:
        raise ConfigurationError(
            f"{flag} `{path}`: no split is called train; name one of the directories "
            f"{', '.join(sorted(splits))}"
        )
    held_out = next(
        (splits[name] for name in _EVALUATION_SPLITS if splits.get(name, train) != train), None
    )
    return Sources(
        lambda: _arrow_rows(train, flag),
        None if held_out is None else lambda: _arrow_rows(held_out, flag),
        [str(split) for split in splits.values() if split not in (train, held_out)],
    )


def _reader_of(files: list[Path], flag: str) -> Callable[[], Iterator[Row | BadRow]]:
    for file in files:
        if file.suffix not in _JSON_LINES + _PARQUET:
            raise ConfigurationError(
                f"{flag} `{file}`: headrace reads {', '.join(_JSON_LINES + _PARQUET)} files"
            )

    def rows() -> Iterator[Row | BadRow]:
        for file in files:
            yield from _parquet_rows(file, flag) if file.suffix in _PARQUET else _json_rows(file)

    return rows


def _json_rows(path: Path) -> Iterator[Row | BadRow]:
    decoder = msgspec.json.Decoder()
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            if number == 1 and line.lstrip().startswith(b"["):
                raise ConfigurationError(
                    f"{path}: is one JSON array; expected one JSON object a line (JSONL)"
                )
            try:
                values = decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                yield BadRow(str(path), number, "", f"is not JSON: {error}")
                continue
            if isinstance(values, dict):
                yield Row(str(path), number, values)
            else:
                found = type(values).__name__
                yield BadRow(str(path), number, "", f"must be a JSON object, is a {found}")


def _parquet_rows(path: Path, flag: str) -> Iterator[Row]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                number += 1
                yield Row(str(path), number, values)
    except ArrowException as error:
        raise ConfigurationError(f"{flag} `{path}`: unusable Parquet file ({error})") from None


def _arrow_rows(path: Path, flag: str) -> Iterator[Row]:
    # Reads the library's own format, indices of a filtered data set included.
    from datasets import load_from_disk

    try:
        data_set = load_from_disk(str(path))
    except Exception as error:  # the library raises whatever its parts raise
        raise ConfigurationError(f"{flag} `{path}`: unusable data set ({error})") from None
    for number, values in enumerate(data_set, 1):
        yield Row(str(path), number, values)
