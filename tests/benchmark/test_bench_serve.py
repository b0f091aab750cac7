"""``headrace bench serve``: what it measures of a known server, what it refuses."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from headrace.benchmark.record import load_record
from headrace.benchmark.serving.arrivals import due_times
from headrace.benchmark.serving.events import decode_event
from headrace.benchmark.serving.load import Load, LoadLimits
from headrace.benchmark.serving.outcome import Outcome
from headrace.benchmark.serving.target import Target, find_target
from headrace.benchmark.serving.workload import ConversationWorkload, RandomWorkload
from headrace.cli.main import main
from headrace.link.errors import ConfigurationError


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", "serve", *arguments])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def null_server() -> Iterator[str]:
    command = [sys.executable, "-m", "headrace.benchmark.serving.null_server", "--pace", "50"]
    source = str(Path(__file__).parents[2] / "src")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": source, "PATH": ""}
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """A server that answers every POST with given bytes."""
    servers = []

    def start(reply: bytes, status: int = 200, models: list[dict[str, Any]] | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                document = {"data": models or [{"id": "m", "owned_by": "peer"}]}
                self.answer(200, json.dumps(document).encode() if "models" in self.path else b"{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                server.bodies.append(json.loads(body))
                self.answer(status, reply)

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.bodies = []
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        start.bodies = server.bodies
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def run_load(url: str, requests: int = 1, api: str = "completions", **limits: Any) -> Load:
    target = find_target(url, api, None, None)
    ids = (1000, 2000) if api == "completions" else None
    until = {"requests": requests, "seconds": None, "max_concurrency": None, "timeout": 5.0}
    load = Load(
        target,
        RandomWorkload(0, 8, 6, token_ids=ids),
        LoadLimits(**(until | limits)),
        ignore_eos=True,
    )
    asyncio.run(load.run(due_times(math.inf, "fixed", 0)))
    return load


def test_a_sweep_against_a_server_of_known_pace(null_server, tmp_path, capsys) -> None:
    arguments = ["--rate", "40,inf", "--arrival", "fixed", "--requests", "12"]
    arguments += ["--output-tokens", "6", "--max-concurrency", "6", "--limit", "ttft=1000,tpot=1"]
    path = tmp_path / "r.json"
    assert bench(null_server, *arguments, "--out", str(path)) == 0
    shown = capsys.readouterr().out
    assert "TPOT  = (E2E - TTFT) / (output tokens - 1)" in shown
    record = load_record(path)
    assert (record.system, record.model) == ("null", "null")
    for rate in (40.0, "inf"):
        rows = {row.metric: row for row in record.rows if row.conditions["rate"] == rate}
        assert rows["itl_ms"].value == pytest.approx(20, rel=0.3)
        assert rows["tpot_ms"].value == pytest.approx(20, rel=0.3)
        assert len(rows["ttft_ms"].samples) == 12
        assert len(rows["itl_ms"].samples) == 12 * 5
        assert rows["e2e_ms"].value == pytest.approx(100, rel=0.6)
        assert rows["within_limits"].value == 0
        assert rows["within_limits"].conditions["tpot_limit_ms"] == 1
        assert rows["most_in_flight"].value <= 6
        assert (rows["ttft_ms"].context, rows["ttft_ms"].new_tokens) == (128, 6)
        assert 0 < rows["client_us_per_event"].value < 1e5
        assert "errors" not in rows


def test_a_cap_on_concurrency_is_kept_and_connections_are_reused(null_server) -> None:
    load = run_load(null_server, requests=9, max_concurrency=3)
    assert load.most_in_flight == 3
    assert [outcome.error for outcome in load.outcomes] == [""] * 9
    assert load.events == 9 * 6


@pytest.mark.parametrize(
    ("reply", "status", "error", "events"),
    [
        (b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n', 200, "", 1),
        (b'data: {"choices":[{"text":"a"}]}\r\n\r\ndata: [DONE]\r\n\r\n', 200, "", 1),
        (b'data:{"index":1,"token":{"id":5},"generated_text":"x"}\n\n', 200, "", 1),
        (b'data: {"choices":[{"text":"a"}]}\n\n', 200, "connection lost", 1),
        (b'data: {"error":{"message":"broke"}}\n\ndata: [DONE]\n\n', 200, "error event", 0),
        (b"data: {not json\n\ndata: [DONE]\n\n", 200, "not an event", 0),
        (b"data: [DONE]\n\n", 200, "no output", 0),
        (b'{"error":{"message":"full"}}', 429, "http 429", 0),
    ],
    ids=["openai", "crlf", "tgi", "cut off", "error", "garbage", "empty", "refused"],
)
def test_ends_of_a_stream(scripted, reply, status, error, events) -> None:
    (outcome,) = run_load(scripted(reply, status)).outcomes
    assert outcome.error.startswith(error)
    assert bool(outcome.error) == bool(error)
    assert outcome.events == events


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Target(
            "127.0.0.1", silent.getsockname()[1], None, "", "completions", "m", None, "s", "", ()
        )
        limits = LoadLimits(requests=1, seconds=None, max_concurrency=None, timeout=0.2)
        load = Load(target, RandomWorkload(0, 4, 4), limits, ignore_eos=True)
        asyncio.run(load.run(due_times(math.inf, "fixed", 0)))
    assert [outcome.error for outcome in load.outcomes] == ["timeout"]


@pytest.mark.parametrize(
    ("event", "has_output", "is_last"),
    [
        ('{"choices":[{"text":" a","finish_reason":null}]}', True, False),
        ('{"choices":[{"text":"","finish_reason":null}]}', True, False),
        ('{"choices":[{"text":"","finish_reason":"stop"}]}', False, True),
        ('{"choices":[{"text":"z","finish_reason":"length"}]}', True, True),
        ('{"choices":[{"delta":{"role":"assistant","content":""}}]}', False, False),
        ('{"choices":[{"delta":{"content":"a"}}]}', True, False),
        ('{"choices":[{"delta":{},"finish_reason":"stop"}]}', False, True),
        ('{"choices":[],"usage":{"completion_tokens":3}}', False, False),
        ('{"token":{"id":7,"text":""},"generated_text":null}', True, False),
    ],
)
def test_which_events_bring_output(event: str, has_output: bool, is_last: bool) -> None:
    decoded = decode_event(event)
    assert (decoded.has_output, decoded.is_last) == (has_output, is_last)


def test_the_formulas() -> None:
    outcome = Outcome(due=0.0, sent=1.0)
    for now in (1.5, 1.6, 1.9):
        outcome.take_output(now)
    outcome.output_tokens = 5
    assert outcome.ttft == pytest.approx(0.5)
    assert outcome.e2e == pytest.approx(0.9)
    assert outcome.tpot == pytest.approx((0.9 - 0.5) / 4)
    assert list(outcome.gaps) == pytest.approx([0.1, 0.3])
    assert outcome.keeps({"ttft": 0.6, "itl": 0.31, "tpot": 0.11, "e2e": 1.0})
    assert not outcome.keeps({"itl": 0.29})
    outcome.error = "timeout"
    assert not outcome.keeps({})


def test_arrivals() -> None:
    assert list(islice(due_times(4.0, "fixed", 0), 4)) == [0.0, 0.25, 0.5, 0.75]
    assert list(islice(due_times(math.inf, "poisson", 0), 3)) == [0.0, 0.0, 0.0]
    times = list(islice(due_times(50.0, "poisson", 3), 20_000))
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.02, rel=0.05)
    assert deviation == pytest.approx(mean, rel=0.05)
    assert times == list(islice(due_times(50.0, "poisson", 3), 20_000))


def test_random_prompts_are_repeatable_and_of_the_asked_sizes() -> None:
    def asks(seed: int, **options: Any) -> list[Any]:
        workload = RandomWorkload(seed, 40, 20, token_ids=(1000, 1100), **options)
        return [workload.next() for _ in range(50)]

    assert asks(1) == asks(1) != asks(2)
    assert all(len(ask.prompt) == 40 and ask.new_tokens == 20 for ask in asks(1))
    assert all(1000 <= token <= 1100 for ask in asks(1) for token in ask.prompt)
    varied = asks(1, spread=0.5)
    assert all(20 <= len(ask.prompt) <= 60 and 10 <= ask.new_tokens <= 30 for ask in varied)
    assert len({len(ask.prompt) for ask in varied}) > 10
    shared = asks(1, prefix_tokens=30, prefix_groups=3)
    assert len({tuple(ask.prompt[:30]) for ask in shared}) == 3
    assert len({tuple(ask.prompt) for ask in shared}) == 50
    assert len(RandomWorkload(0, 12, 4).next().prompt.split()) == 12


def test_conversations(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    turn = [{"from": "system", "value": "s"}, {"from": "human", "value": "q" * 40}]
    turn += [{"from": "gpt", "value": "a" * 80}]
    short = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "a" * 80}]
    path.write_text(json.dumps([{"conversations": turn}, {"conversations": short}]))
    ask = ConversationWorkload(0, path).next()
    assert (ask.prompt, ask.new_tokens) == ("q" * 40, 20)
    assert ConversationWorkload(0, path, output_tokens=5).next().new_tokens == 5
    for text, says in (("[{}]", "ShareGPT"), ("{", "not JSON"), ("[]", "no conversation")):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=says):
            ConversationWorkload(0, path)


def test_what_is_sent(scripted) -> None:
    reply = b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
    url = scripted(reply)
    run_load(url)
    run_load(url, api="chat")
    run_load(url, api="tgi")
    completion, chat, tgi = scripted.bodies
    assert len(completion["prompt"]) == 8
    assert completion["ignore_eos"] is completion["stream"] is True
    assert completion["max_tokens"] == 6
    assert isinstance(chat["messages"][0]["content"], str)
    assert tgi["parameters"]["max_new_tokens"] == 6


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["UNREACHABLE"], "no server answers at http://127.0.0.1:"),
        (["NULL", "--model", "gpt-x"], "does not serve `gpt-x`; it serves null"),
        (["SHORT", "--input-tokens", "90"], "218 tokens exceed the 100 of `m`"),
        (["REFUSES"], "http 422: too long"),
        (["ftp://x"], "is not a URL"),
        (["NULL", "--api", "grpc"], "--api must be one of"),
        (["NULL", "--arrival", "bursts"], "--arrival must be one of"),
        (["NULL", "--rate", "0"], "'0' is not a list of positive rates"),
        (["NULL", "--limit", "speed=1"], "'speed=1' is not a limit"),
        (["NULL", "--token-ids", "9:1"], "'9:1' is not a range"),
        (["NULL", "--prefix-tokens", "128"], "--prefix-tokens 128 must be below"),
        (["NULL", "--dataset", "none.json"], "none.json: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_status_2_and_no_record(
    null_server, scripted, tmp_path, capsys, arguments, says
) -> None:
    places = {
        "UNREACHABLE": lambda: f"http://127.0.0.1:{unused_port()}",
        "NULL": lambda: null_server,
        "SHORT": lambda: scripted(b"", models=[{"id": "m", "max_model_len": 100}]),
        "REFUSES": lambda: scripted(b'{"error":"too long","error_type":"validation"}', 422),
    }
    place = places.get(arguments[0], lambda: arguments[0])()
    assert bench(place, *arguments[1:], "--out", str(tmp_path / "r.json")) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("headrace: ")
    assert says in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
