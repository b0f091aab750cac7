"""Rows between the process that checked them and those that train on them: Arrow files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.finetuning.data.layout import TrainingRow

if TYPE_CHECKING:
    from datasets import Dataset

_ROWS_AT_ONCE = 4096
COLUMNS = ("input_ids", "labels", "lengths")


def write_rows(path: Path, rows: Sequence[TrainingRow]) -> str:
    """Write rows in Arrow's streaming format, which ``datasets`` maps into memory.

    Returns:
        A hash of all that was written, to know the data again at a resume.
    """
    import pyarrow

    schema = pyarrow.schema([(name, pyarrow.list_(pyarrow.int32())) for name in COLUMNS])
    digest = hashlib.sha256()
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows[start : start + _ROWS_AT_ONCE]
            columns = [
                pyarrow.array([getattr(row, name) for row in part], type=schema.field(name).type)
                for name in COLUMNS
            ]
            for column in columns:
                digest.update(column.offsets.to_numpy().tobytes())
                digest.update(column.flatten().to_numpy().tobytes())
            stream.write_batch(pyarrow.record_batch(columns, schema=schema))
    return digest.hexdigest()


def load_rows(path: Path) -> Dataset:
    """The rows as a memory-mapped ``datasets.Dataset`` with the columns ``COLUMNS``."""
    from datasets import Dataset

    return Dataset.from_file(str(path))
