from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Shared by test files; importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import sums, write_rows, write_tiny_model

from headrace.checkpoint.resolve import resolve
from headrace.finetuning.data.prepare import prepare_data
from headrace.finetuning.run_directory import Job, RunDirectory
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.worker_environment import worker_environment


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(40))


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def train(tiny_model, rows_file, monkeypatch, signal_handlers):
    """Runs a training in this process, where the libraries are imported once only."""
    from headrace.finetuning.training import run as training_run

    def start(out: Path, data: Path = rows_file, **changes):
        settings = FinetuneSettings(
            model=str(tiny_model),
            data=str(data),
            out=str(out),
            device="cpu",
            placement="single",
            processes=1,
            base_precision="fp32",
            **{"learning_rate": 1e-2, "log_every": 1, **changes},
        )
        directory = RunDirectory(out)
        directory.claim(settings.resume)
        checkpoint = resolve(str(tiny_model))
        prepared = prepare_data(settings, checkpoint, print)
        job = Job(
            model=str(tiny_model),
            model_id=str(tiny_model),
            data_hash=prepared.write(directory.new_data),
            settings=settings,
        )
        directory.accept(job, prepared.bad)
        for name, value in worker_environment(settings, directory, 1).items():
            monkeypatch.setenv(name, value)
        return training_run.run(directory)

    return start
