"""Real processes, signals and sockets: after each fault the next request is served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

LONG = {
    "inputs": "Tell me a very long story about the sea.",
    "parameters": {"max_new_tokens": 2000, "ignore_eos": True},
}


def stream_until(server, condition, parameters=None) -> list[dict]:
    """Events of one stream until ``condition(events)``; then the connection is closed hard."""
    events: list[dict] = []
    body = {**LONG, "parameters": {**LONG["parameters"], **(parameters or {})}}
    with httpx.stream("POST", f"{server.url}/generate_stream", json=body, timeout=60) as reply:
        if reply.status_code != 200:
            reply.read()
            return [{"status": reply.status_code, **reply.json()}]
        for line in reply.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line[5:]))
                if condition(events):
                    break
    return events


def test_clients_that_vanish_by_the_hundred_leave_no_blocks(server) -> None:
    server.generates()
    server.wait_metric("headrace_kv_blocks_used", 0)
    memory = psutil.Process(server.process.pid).memory_info().rss

    async def vanish() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps(LONG).encode()
        writer.write(
            b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            + b"Content-Length: %d\r\n\r\n" % len(body)
            + body
        )
        await reader.readuntil(b"data:")
        writer.transport.abort()

    async def hundred() -> None:
        await asyncio.gather(*(vanish() for _ in range(100)))

    asyncio.run(asyncio.wait_for(hundred(), 120))
    server.wait_metric("headrace_kv_blocks_used", 0)
    server.wait_metric("tgi_queue_size", 0)
    server.generates()
    grown = psutil.Process(server.process.pid).memory_info().rss - memory
    assert grown < 64 * 1024**2


def test_a_thousand_silent_connections_do_not_keep_others_out(server) -> None:
    silent = []
    try:
        for _ in range(1000):
            silent.append(socket.create_connection(("127.0.0.1", server.port)))
        server.generates()
        started = time.perf_counter()
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert time.perf_counter() - started < 1.0
    finally:
        for connection in silent:
            connection.close()
    server.generates()


def test_health_and_ready_answer_quickly_under_full_load(server) -> None:
    with ThreadPoolExecutor(32) as pool:
        loads = [
            pool.submit(stream_until, server, lambda events: len(events) >= 60) for _ in range(32)
        ]
        time.sleep(0.5)
        latencies = []
        with httpx.Client() as client:
            while not all(load.done() for load in loads):
                for path in ("/health", "/ready"):
                    started = time.perf_counter()
                    assert client.get(f"{server.url}{path}").status_code == 200
                    latencies.append(time.perf_counter() - started)
                time.sleep(0.02)
    latencies.sort()
    assert latencies[len(latencies) // 2] < 0.05, "half of the probes within 50 ms"
    server.generates()


def test_engine_killed_mid_batch(start_server) -> None:
    server = start_server()
    engine = server.engine_pid
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream_until, server, lambda events: False) for _ in range(4)]
        deadline = time.monotonic() + 20
        while server.metric("tgi_batch_current_size") < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(engine, signal.SIGKILL)
        for stream in streams:
            events = stream.result(timeout=30)
            assert events, "every waiting client hears of it"
            assert "error" in events[-1], events[-1]
    server.wait_ready()
    assert server.engine_pid != engine
    server.generates()
    assert server.stop() == 0


def test_an_engine_that_keeps_dying_ends_the_server_with_the_reason(start_server) -> None:
    server = start_server()
    killed: set[int] = set()
    deadline = time.monotonic() + 90
    while server.process.poll() is None and time.monotonic() < deadline:
        # The server or an engine may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(server.process.pid).children():
                if child.pid not in killed and "headrace.engine" in child.cmdline():
                    child.kill()
                    killed.add(child.pid)
        time.sleep(0.05)
    assert server.process.wait(10) not in (0, 2)
    assert len(killed) == 6, "the first and five restarts"
    last = server.log.read_text().strip().splitlines()[-1]
    assert "died more than 5 times within 10 minutes" in last
    assert "SIGKILL" in last


def test_sigterm_under_load_finishes_what_runs_and_refuses_the_rest(start_server) -> None:
    server = start_server("--graceful-termination-timeout", "20")
    with ThreadPoolExecutor(4) as pool:
        running = [
            pool.submit(stream_until, server, lambda events: False, {"max_new_tokens": 100})
            for _ in range(4)
        ]
        deadline = time.monotonic() + 20
        while server.metric("tgi_batch_current_size") < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGTERM)
        for stream in running:
            assert stream.result(timeout=30)[-1]["generated_text"]
    assert server.process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_sigterm_with_no_grace_tells_the_rest(start_server) -> None:
    server = start_server("--graceful-termination-timeout", "1")
    with ThreadPoolExecutor(2) as pool:
        streams = [
            pool.submit(stream_until, server, lambda events: False, {"max_new_tokens": 6000})
            for _ in range(2)
        ]
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        for stream in streams:
            assert "error" in stream.result(timeout=30)[-1]
    server.process.wait(20)


def test_the_engine_does_not_outlive_a_killed_server(start_server) -> None:
    server = start_server()
    engine = psutil.Process(server.engine_pid)
    server.process.kill()
    server.process.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        engine.wait(10)
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE


def test_a_full_queue_is_told_when_to_come_back(start_server) -> None:
    server = start_server("--max-concurrent-requests", "2")
    with ThreadPoolExecutor(2) as pool:
        holders = [
            pool.submit(stream_until, server, lambda events: len(events) >= 150) for _ in range(2)
        ]
        deadline = time.monotonic() + 20
        while server.metric("tgi_batch_current_size") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        refused = httpx.post(f"{server.url}/generate_stream", json=LONG, timeout=10)
        assert refused.status_code == 429
        assert refused.json()["error_type"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        for holder in holders:
            holder.result(timeout=60)
    # That they have left is known to the server only when it is told.
    server.wait_metric("headrace_requests_in_flight", 0)
    server.generates()


def test_one_bad_request_in_a_batch_touches_no_other(server) -> None:
    good = {"inputs": "The sky is", "parameters": {"max_new_tokens": 12}}
    alone = httpx.post(f"{server.url}/generate", json=good, timeout=60).json()
    bad = [
        {"inputs": ""},
        {"inputs": "x", "parameters": {"max_new_tokens": 10**6}},
        {"inputs": "x", "parameters": {"temperature": 0}},
        {"inputs": "x", "unknown": 1},
        {"inputs": "x", "parameters": {"top_n_tokens": 6}},
    ]
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(
                lambda body: httpx.post(f"{server.url}/generate", json=body, timeout=60),
                [good, *bad] * 4,
            )
        )
    for index, reply in enumerate(replies):
        if index % 6 == 0:
            assert reply.json() == alone
        else:
            assert reply.status_code == 422, reply.text
            assert set(reply.json()) == {"error", "error_type"}
