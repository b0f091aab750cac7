"""``headrace serve`` and ``headrace chat`` with the built-in model, as a user sees them."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "headrace.cli"]
SMALL_CACHE = ["--max-batch-total-tokens", "4096", "--max-batch-size", "4"]
START_SECONDS = 120


def environment(**more: str) -> dict[str, str]:
    keep = ("PATH", "HOME", "LANG", "PYTHONPATH", "HEADRACE_CACHE", "HEADRACE_BUILTIN_MODEL")
    return {key: value for key, value in os.environ.items() if key in keep} | more


class Server:
    """A served model; ``ready`` is the first line of its standard output."""

    def __init__(self, log, *flags: str, **variables: str) -> None:
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--hostname", "127.0.0.1", "--port", "0", *SMALL_CACHE, *flags],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(**variables),
            )
        self.ready = self.process.stdout.readline()
        assert self.ready, log.read_text()
        self.url = re.search(r"http://127\.0\.0\.1:\d+", self.ready).group()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and the rest of the standard output."""
        self.process.send_signal(number)
        try:
            rest, _ = self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, rest


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("serve") / "log"
    # Answers of the suggested request, which sets no limit of its own, are short.
    flags = ("--json-output", "--waiting-served-ratio", "1.2", "--max-total-tokens", "128")
    running = Server(log, *flags, API_KEY="secret")
    yield running
    if running.process.poll() is None:
        running.stop()


def test_the_ready_line_has_the_address_and_a_curl_that_works(server):
    assert server.ready.startswith("headrace ")
    assert " is ready: " in server.ready
    request = shlex.split(server.ready.partition("try: ")[2].replace("$API_KEY", "secret"))
    answer = subprocess.run([*request, "-s"], capture_output=True, text=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]


def test_chat_with_a_running_server(server):
    result = subprocess.run(
        [*COMMAND, "chat", "--url", server.url, "--max-tokens", "8", "--temperature", "0"],
        input="Say hello.\n/reset\nSay hello.\n",
        env=environment(API_KEY="secret"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first
    assert first == second


def test_chat_is_told_why_a_server_refuses(server):
    result = subprocess.run(
        [*COMMAND, "chat", "--url", server.url, "--api-key", "wrong"],
        input="hello\n",
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("headrace: the server answers 401")
    assert len(result.stderr.splitlines()) == 1


def test_sigterm_ends_it_with_status_0_and_logs_are_json_lines(server):
    status, rest = server.stop()
    assert (status, rest) == (0, "")
    warning, *lines = server.log.read_text().splitlines()
    assert warning.startswith("headrace: warning: `--waiting-served-ratio`")
    assert lines
    for line in lines:
        json.loads(line)


@pytest.mark.parametrize(
    ("command", "flags", "part"),
    [
        ("serve", ["--max-batch-total-tokens", "1000000000000"], "--max-batch-total-tokens"),
        ("serve", ["--device", "cuda"], "--device cuda"),
        ("chat", ["--backend", "abacus"], "--backend"),
    ],
)
def test_what_the_engine_refuses_is_one_line_and_status_2(command, flags, part):
    port = ["--hostname", "127.0.0.1", "--port", "0"] if command == "serve" else []
    result = subprocess.run(
        [*COMMAND, command, *port, *flags],
        input="",
        env=environment(CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("headrace: ")
    assert part in last


def _own_the_terminal() -> None:
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    # A shell's background job, such as a test run may be, hands SIGINT on as ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        main, child = pty.openpty()
        self._main = main
        self.shown = ""
        # In a session of its own with this terminal as its controlling one: Ctrl-C is a signal.
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment(TERM="xterm"),
            start_new_session=True,
            preexec_fn=_own_the_terminal,
        )
        os.close(child)

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._main, text.encode())

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.shown):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} never came: {self.shown[-2000:]!r}"
            if select.select([self._main], [], [], left)[0]:
                shown = os.read(self._main, 65536).decode(errors="replace")
                self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._main)


@pytest.fixture
def terminal():
    opened = []

    def open_terminal(*arguments: str) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_chat_on_a_terminal_streams_and_ctrl_c_stops_the_answer_only(terminal):
    chat = terminal("chat", *SMALL_CACHE, "--temperature", "0")
    chat.wait_for(r"/help shows the commands\)\r\n> ")
    chat.type("Write a very long story about the sea.\n")
    chat.wait_for(r"the sea\.\s+\S")
    chat.type("\x03")
    chat.wait_for(r"\(stopped\)\r\n> ", 20)
    chat.type("/system You are brief.\n")
    chat.wait_for("starts afresh", 20)
    chat.type("/exit\n")
    assert chat.process.wait(20) == 0
