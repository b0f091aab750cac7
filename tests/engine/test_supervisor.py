"""The supervisor against real processes that die in every way an engine can."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headrace.engine.restart_policy import RestartPolicy
from headrace.engine.settings import EngineSettings
from headrace.engine.supervisor import EngineGaveUp, Supervisor
from headrace.link.channel import TransportChannel, remove_socket
from headrace.link.errors import ConfigurationError
from headrace.link.messages import EngineFailed, EngineReady, FromEngine

PROLOGUE = """
import os, sys, time
from headrace.link.channel import EngineChannel
from headrace.link.messages import *
settings = sys.stdin.readline()
channel = EngineChannel(sys.argv[1])
ready = EngineReady(model_id="fake", device="none", backend="none", dtype="none",
    max_input_tokens=1, max_total_tokens=2, max_batch_total_tokens=2, max_batch_size=1,
    block_size=1, kv_blocks=2, vocab_size=3, warmup_seconds=0.0)
"""


class User:
    def __init__(self) -> None:
        self.messages: list[FromEngine] = []
        self.losses: list[str] = []
        self.channels: list[TransportChannel] = []

    def attach(self, channel: TransportChannel) -> None:
        self.channels.append(channel)

    def receive(self, message: FromEngine) -> None:
        self.messages.append(message)

    def engine_lost(self, reason: str) -> None:
        self.losses.append(reason)

    @property
    def times_ready(self) -> int:
        return sum(isinstance(message, EngineReady) for message in self.messages)


@pytest.fixture
def engine(tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    def write(body: str) -> tuple[str, ...]:
        path = tmp_path / "fake_engine.py"
        path.write_text(PROLOGUE + body)
        return (sys.executable, str(path))

    return write


def is_running(pid: int) -> bool:
    """Also false of a process that has ended and that nobody waits for."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


QUICK = {"first_delay_seconds": 0.01}


async def test_a_killed_engine_is_started_again_and_its_user_told(engine) -> None:
    user = User()
    supervisor = Supervisor(
        EngineSettings(),
        user,
        RestartPolicy(**QUICK),
        command=engine("channel.send(ready)\ntime.sleep(60)"),
    )
    running = asyncio.create_task(supervisor.run())
    await until(lambda: user.times_ready == 1)
    first = supervisor.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: user.times_ready == 2)
    assert supervisor.pid != first
    assert user.losses == ["the engine process was ended by SIGKILL"]
    assert len(user.channels) == 2
    await supervisor.stop(grace_seconds=0.1)
    await running
    assert supervisor.pid is None


async def test_the_sixth_death_is_the_last(engine) -> None:
    user = User()
    supervisor = Supervisor(
        EngineSettings(), user, RestartPolicy(**QUICK), command=engine("sys.exit(7)")
    )
    with pytest.raises(EngineGaveUp, match=r"more than 5 times within 10 minutes.*status 7"):
        await supervisor.run()
    assert len(user.losses) == 6


async def test_a_permanent_failure_is_not_retried_and_its_reason_reaches_the_user(engine) -> None:
    user = User()
    body = (
        "channel.send(EngineFailed('no such model', permanent=True))\nchannel.close()\nsys.exit(2)"
    )
    supervisor = Supervisor(EngineSettings(), user, command=engine(body))
    with pytest.raises(ConfigurationError, match="no such model"):
        await supervisor.run()
    assert user.losses == ["no such model"]
    assert EngineFailed("no such model", permanent=True) in user.messages


async def test_a_silent_engine_is_killed(engine) -> None:
    user = User()
    supervisor = Supervisor(
        EngineSettings(),
        user,
        RestartPolicy(max_restarts=0),
        heartbeat_seconds=0.4,
        command=engine("channel.send(ready)\ntime.sleep(60)"),
    )
    with pytest.raises(EngineGaveUp, match="silent for"):
        await asyncio.wait_for(supervisor.run(), 20)


async def test_stop_lets_the_engine_finish(engine, tmp_path: Path) -> None:
    user = User()
    done = tmp_path / "done"
    body = (
        "channel.send(ready)\n"
        "while not any(isinstance(m, Drain) for m in channel.receive(0.1)): pass\n"
        f"open({str(done)!r}, 'w').close()"
    )
    supervisor = Supervisor(EngineSettings(), user, command=engine(body))
    running = asyncio.create_task(supervisor.run())
    await until(lambda: user.times_ready == 1)
    await supervisor.stop(grace_seconds=10)
    await running
    assert done.exists()
    assert user.losses == []


def test_restart_delays_grow_and_recover_after_the_window() -> None:
    policy = RestartPolicy(max_restarts=3, window_seconds=10, first_delay_seconds=1)
    assert [policy.next_delay(t) for t in (0.0, 1.0, 2.0, 3.0)] == [1, 2, 4, None]
    assert policy.next_delay(20.0) == 1


def test_an_engine_whose_server_was_killed_ends_and_leaves_no_socket() -> None:
    """A killed server cannot remove its end of the channel itself."""
    server = """
import subprocess, sys, time
import msgspec
from headrace.engine.settings import EngineSettings
from headrace.link.channel import TransportChannel
channel = TransportChannel(print)
command = [sys.executable, "-m", "headrace.engine", channel.address]
engine = subprocess.Popen(command, stdin=subprocess.PIPE)
engine.stdin.write(msgspec.json.encode(EngineSettings()) + b"\\n")
engine.stdin.flush()
print(channel.address, engine.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", server], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address, pid = process.stdout.readline().split()
        directory = Path(address.removeprefix("ipc://")).parent
        assert directory.is_dir()
        process.kill()
    deadline = time.monotonic() + 20
    while directory.exists() or is_running(int(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_the_socket_and_its_own_directory_are_removed(tmp_path: Path) -> None:
    for name in ("engine.sock", "other"):
        (tmp_path / name).touch()
    remove_socket(f"ipc://{tmp_path / 'engine.sock'}")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    (tmp_path / "other").unlink()
    remove_socket(f"ipc://{tmp_path / 'engine.sock'}")
    assert not tmp_path.exists()
