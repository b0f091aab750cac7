"""The training processes of one machine: started with torchrun's variables, stopped together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from headrace.finetuning.exit_status import ExitStatus

_POLL_SECONDS = 0.1
# After one process failed: the others are waiting for it in a collective and never return.
_GRACE_SECONDS = 10.0
_TAIL_LINES = 15


def run_processes(
    out: Path, processes: int, logs: Path, environment: Mapping[str, str]
) -> ExitStatus:
    """Run ``python -m headrace.finetuning OUT`` as ``processes`` ranks and wait for their end.

    SIGTERM and SIGINT are passed on to all of them; they save and exit. Rank 0 has this process's
    terminal, the others write to ``logs/rank-N.log``.

    Args:
        out: The run's directory.
        logs: Directory for the other ranks' output.
        environment: Variables beside those of this process.

    Returns:
        The status of the process whose failure the others follow from, else that of rank 0.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with _Signals() as signals:
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for variables in _ranks(processes):
                workers.append(_start(out, variables, logs, environment))
            return _wait(workers, signals, logs)
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()


def _ranks(processes: int) -> list[dict[str, str]]:
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(processes)
    ]


def _start(
    out: Path, rank: Mapping[str, str], logs: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    # The same package as in this process, wherever the user stands.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    variables = {**os.environ, "PYTHONPATH": path, **environment, **rank}
    command = [sys.executable, "-m", "headrace.finetuning", str(out)]
    # A process group of its own: the terminal's SIGINT comes once, through this process.
    if rank.get("RANK", "0") == "0":
        return subprocess.Popen(command, env=variables, start_new_session=True)
    with (logs / f"rank-{rank['RANK']}.log").open("wb") as log:
        return subprocess.Popen(
            command, env=variables, stdout=log, stderr=log, start_new_session=True
        )


def _wait(workers: Sequence[subprocess.Popen[bytes]], signals: _Signals, logs: Path) -> ExitStatus:
    failures: list[int] = []
    deadline = 0.0
    while any(worker.poll() is None for worker in workers):
        for number in signals.take():
            for worker in workers:
                worker.send_signal(number)
        _add_failures(failures, workers)
        if not failures:
            deadline = time.monotonic() + _GRACE_SECONDS
        elif time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
    _add_failures(failures, workers)
    if not failures:
        return ExitStatus(workers[0].returncode)
    failed = min(failures, key=lambda rank: not _was_killed(workers[rank]))
    status = workers[failed].returncode
    if failed:
        _show_tail(logs / f"rank-{failed}.log", failed)
    if status < 0:
        print(
            f"headrace: training process {failed} was ended by "
            f"{signal.Signals(-status).name}; --resume continues from the last checkpoint",
            file=sys.stderr,
        )
        return ExitStatus.FAILED
    return ExitStatus(status) if status in set(ExitStatus) else ExitStatus.FAILED


def _add_failures(failures: list[int], workers: Sequence[subprocess.Popen[bytes]]) -> None:
    clean = (None, ExitStatus.DONE, ExitStatus.INTERRUPTED)
    failures.extend(
        rank
        for rank, worker in enumerate(workers)
        if worker.poll() not in clean and rank not in failures
    )


def _was_killed(worker: subprocess.Popen[bytes]) -> bool:
    """Whether its end is no consequence of another's.

    A process that dies closes its sockets before its end can be seen, so that another may have
    failed of that already: with an exception, or, where a library's thread found it, an abort.
    """
    return worker.returncode < 0 and worker.returncode != -signal.SIGABRT


def _show_tail(log: Path, rank: int) -> None:
    lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    print(f"headrace: training process {rank} failed ({log}):", *lines, sep="\n", file=sys.stderr)


class _Signals:
    """SIGTERM and SIGINT, kept until they are taken."""

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received: list[int] = []

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._receive) for number in self._NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def take(self) -> list[int]:
        """The signals since the last call."""
        received, self._received = self._received, []
        return received
