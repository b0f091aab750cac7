"""A real server: ``headrace serve`` in a process of its own, with the built-in model."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

START_SECONDS = 120


class Server:
    """One running ``headrace serve``."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log
        self.url = f"http://127.0.0.1:{port}"

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"exited {self.process.returncode}: {self.log.read_text()}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {seconds} s: {self.log.read_text()}")

    @property
    def engine_pid(self) -> int:
        children = psutil.Process(self.process.pid).children()
        engines = [c for c in children if "headrace.engine" in " ".join(c.cmdline())]
        assert len(engines) == 1, [c.cmdline() for c in children]
        return engines[0].pid

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def wait_metric(self, name: str, value: float, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while (seen := self.metric(name)) != value:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} is {seen}, not {value}, after {seconds} s")
            time.sleep(0.1)

    def generates(self) -> str:
        """The next request is served."""
        reply = httpx.post(
            f"{self.url}/generate",
            json={"inputs": "The sky is", "parameters": {"max_new_tokens": 4}},
            timeout=60,
        )
        assert reply.status_code == 200, reply.text
        return str(reply.json()["generated_text"])

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Serve = Callable[..., Server]


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts servers with the given flags; all are gone at the end."""
    servers: list[Server] = []

    def start(*flags: str, wait: bool = True) -> Server:
        port = free_port()
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-m", "headrace.cli", "serve", "--hostname", "127.0.0.1"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--port", str(port), *flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        server = Server(process, port, log)
        servers.append(server)
        if wait:
            server.wait_ready()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: Serve) -> Server:
    """One server that tests share; they leave it as they found it."""
    return start_server("--max-batch-total-tokens", "32768")
