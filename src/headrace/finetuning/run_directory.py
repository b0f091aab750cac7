"""Where everything of a run lies under its output directory, and what makes two runs the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from headrace.finetuning.data.rows import BadRow
from headrace.finetuning.settings import FinetuneSettings
from headrace.link.errors import ConfigurationError

# What may change between a run and its continuation: none of it enters the computation.
_FREE_OF_DATA = frozenset(("data", "eval_data", "format", "columns", "skip_bad_rows", "model"))
_FREE_OF_USE = frozenset(("out", "merge", "resume", "dry_run"))
_FREE_OF_SAVING = frozenset(("log_every", "save_every", "keep_checkpoints"))
_FREE = _FREE_OF_DATA | _FREE_OF_USE | _FREE_OF_SAVING


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the training processes are told; kept as ``run.json``.

    Attributes:
        model: The base model's directory or file, absolute.
        model_id: What the adapter names as its base: a hub id, or an absolute path.
        data_hash: Of all rows, see ``PreparedData.write``.
        settings: ``device``, ``placement`` and ``processes`` are decided.
    """

    model: str
    model_id: str
    data_hash: str
    settings: FinetuneSettings


class RunDirectory:
    """The files of a run.

    Args:
        path: The output directory; also the finished adapter's.

    Attributes:
        data: The rows that are trained on.
        new_data: Where they are written until it is known that they may be trained on.
        bad_rows: The rows that were skipped, with their reasons.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self.new_data = path / ".data"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.merged = path / "merged"
        self.curve = path / "loss.png"
        self.history = path / "history.json"
        self.bad_rows = path / "bad_rows.txt"
        self._job = path / "run.json"

    def claim(self, resume: bool) -> None:
        """Refuse a directory that a new run would overwrite, or one without a run to resume.

        Raises:
            ConfigurationError: says which.
        """
        if resume:
            if not self._job.is_file():
                raise ConfigurationError(f"--out {self.path}: holds no run to resume")
        elif self._job.exists():
            raise ConfigurationError(
                f"--out {self.path}: already holds a run; --resume continues it"
            )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigurationError(f"--out {self.path}: is not an empty directory")

    def accept(self, job: Job, bad_rows: Sequence[BadRow]) -> None:
        """Make the rows below ``new_data`` and ``job`` those of the run.

        Raises:
            ConfigurationError: the directory holds another run than this one.
        """
        try:
            if self._job.is_file():
                self._check_same(job)
            shutil.rmtree(self.data, ignore_errors=True)
            self.new_data.replace(self.data)
        finally:
            shutil.rmtree(self.new_data, ignore_errors=True)
        if bad_rows:
            self.bad_rows.write_text("".join(f"{row}\n" for row in bad_rows))
        unfinished = self._job.with_suffix(".part")
        unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(job), indent=1))
        unfinished.replace(self._job)

    def read_job(self) -> Job:
        """What the run is.

        Raises:
            ConfigurationError: the file is damaged.
        """
        try:
            return msgspec.json.decode(self._job.read_bytes(), type=Job)
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigurationError(f"{self._job}: cannot be read ({error})") from None

    def _check_same(self, job: Job) -> None:
        """Refuse to continue a run as another.

        Raises:
            ConfigurationError: names the first thing that differs.
        """
        before = self.read_job()
        if before.model != job.model:
            raise ConfigurationError(
                f"--resume: {self.path} was trained on {before.model}, not on {job.model}"
            )
        for name in FinetuneSettings.__struct_fields__:
            was, is_now = getattr(before.settings, name), getattr(job.settings, name)
            if name not in _FREE and was != is_now:
                flag = name.replace("_", "-")
                raise ConfigurationError(
                    f"--resume: the run in {self.path} has `--{flag}` {_shown(was)}, "
                    f"not {_shown(is_now)}"
                )
        if before.data_hash != job.data_hash:
            raise ConfigurationError(
                f"--resume: the rows differ from those that {self.path} was trained on"
            )


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
