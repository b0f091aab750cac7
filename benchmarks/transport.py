"""Transport alone: events a second and added latency over a null engine on the real link.

The transport process has one core to itself; the null engine and the load client share another.
Every stream gets a token in every step of the null engine, each token is one server-sent event,
and its latency runs from the moment at which the null engine sends the step to the moment at
which the client has read the event.

    python benchmarks/transport.py --record benchmarks/records/cpu-zen4-transport.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import psutil
import uvloop

from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.hardware.processor import processor

_PROMPT = "The quick brown fox jumps over the lazy dog. " * 13
_NEW_TOKENS = 128
_STAMP = re.compile(rb'"logprob":([0-9.]+)')
_HERE = Path(__file__).parent

_ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate_stream": (
        "/generate_stream",
        {"inputs": _PROMPT, "parameters": {"max_new_tokens": _NEW_TOKENS}},
    ),
    "chat": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": _PROMPT}],
            "max_tokens": _NEW_TOKENS,
            "stream": True,
            "logprobs": True,
        },
    ),
}


class Load:
    """What all connections together have received."""

    def __init__(self, request: bytes, server: psutil.Process) -> None:
        self.request = request
        self._server = server
        self.events = 0
        self.reads = 0
        self.latencies: list[float] = []
        self.errors = 0
        self.measuring = False
        self.cpu_before = 0.0

    def begin(self) -> None:
        """From now on it counts."""
        self.cpu_before = self.cpu_seconds()
        self.measuring = True

    def cpu_seconds(self) -> float:
        """Processor time that the server has taken so far."""
        times = self._server.cpu_times()
        return times.user + times.system


class StreamingClient(asyncio.Protocol):
    """One connection that asks again as soon as a stream has ended."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        """Count events and take their stamps."""
        load = self._load
        if load.measuring:
            now = time.monotonic()
            stamps = _STAMP.findall(data)
            load.events += len(stamps)
            load.reads += 1
            load.latencies += [now - float(stamp) for stamp in stamps]
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            load.errors += 1
        if data.endswith(b"0\r\n\r\n"):
            self._transport.write(load.request)


def http_request(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of one POST."""
    document = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(document)}\r\n\r\n"
    return head.encode() + document


async def drive(
    port: int, load: Load, clients: int, stream_seconds: float, seconds: float
) -> float:
    """Load the server; the seconds that were measured.

    Connections begin evenly over the length of a stream, so that ends and beginnings are spread as
    those of independent clients are.
    """
    loop = asyncio.get_running_loop()
    connections = []
    begun = loop.time()
    for number in range(clients):
        await asyncio.sleep(begun + number * stream_seconds / clients - loop.time())
        made, _ = await loop.create_connection(lambda: StreamingClient(load), "127.0.0.1", port)
        connections.append(made)
    load.begin()
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    load.measuring = False
    measured = time.monotonic() - begun
    for connection in connections:
        connection.abort()
    return measured


async def run_transport(clients: int, steps_per_second: float, core: int) -> None:
    """The process under test: application, server and client of the link."""
    from headrace.checkpoint.chat_template import ChatTemplate
    from headrace.checkpoint.resolve import resolve
    from headrace.engine.log_setup import configure_logging
    from headrace.link.channel import TransportChannel
    from headrace.transport.app import create_app
    from headrace.transport.engine_client import EngineClient
    from headrace.transport.served_model import ServedModel
    from headrace.transport.server import serve
    from headrace.transport.settings import TransportSettings

    configure_logging(json_output=True)
    checkpoint = resolve(None)
    model = ServedModel(
        model_id=checkpoint.model_id,
        tokenizer=checkpoint.load_tokenizer(),
        chat_template=ChatTemplate(checkpoint.chat_templates, checkpoint.special_tokens),
    )
    settings = TransportSettings(
        hostname="127.0.0.1",
        port=0,
        max_concurrent_requests=2 * clients,
        graceful_termination_timeout=1.0,
    )
    client = EngineClient()
    channel = TransportChannel(client.receive)
    channel.attach(asyncio.get_running_loop())
    client.attach(channel)
    command = [sys.executable, str(_HERE / "null_engine.py"), channel.address]
    command += ["--steps-per-second", str(steps_per_second), "--streams", str(clients)]
    engine = subprocess.Popen(command, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    await client.wait_ready()
    try:
        await serve(
            create_app(settings, model, client),
            settings,
            on_listening=lambda port: print(port, flush=True),
        )
    finally:
        engine.terminate()
        engine.wait()
        channel.close()


def measure(arguments: argparse.Namespace, route: str, events_per_second: float) -> dict[str, Any]:
    """One offered rate on one route, in a fresh transport process."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = cores[0], cores[-1]
    command = [sys.executable, __file__, "--serve", str(events_per_second / arguments.clients)]
    command += ["--clients", str(arguments.clients), "--load-core", str(load_core)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if not arguments.verbose else None,
        preexec_fn=lambda: os.sched_setaffinity(0, {server_core}),
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        os.sched_setaffinity(0, {load_core})
        watched = psutil.Process(process.pid)
        load = Load(http_request(*_ROUTES[route]), watched)
        stream_seconds = _NEW_TOKENS * arguments.clients / events_per_second
        seconds = uvloop.run(
            drive(port, load, arguments.clients, stream_seconds, arguments.seconds)
        )
        cpu = (load.cpu_seconds() - load.cpu_before) / seconds
        process.terminate()
        process.wait(20)
        os.sched_setaffinity(0, set(cores))
    load.latencies.sort()

    def percentile(share: float) -> float:
        return load.latencies[int(share * (len(load.latencies) - 1))] * 1e3

    return {
        "route": route,
        "offered": events_per_second,
        "events_per_s": load.events / seconds,
        "events_per_read": load.events / max(load.reads, 1),
        "latency_ms": {f"p{p}": percentile(p / 100) for p in (50, 90, 99)},
        "cpu": cpu,
        "errors": load.errors,
    }


def rows(result: dict[str, Any], clients: int) -> list[Row]:
    """The result as rows of a record."""
    conditions = {"route": result["route"], "offered_events_per_s": result["offered"]}

    def row(metric: str, value: float, unit: str) -> Row:
        return median_row(metric, [round(value, 3)], unit, batch=clients, conditions=conditions)

    return [
        row("events_per_s", result["events_per_s"], "1/s"),
        row("events_per_read", result["events_per_read"], "1"),
        *(row(f"added_latency_{p}_ms", v, "ms") for p, v in result["latency_ms"].items()),
        row("transport_cpu_cores", result["cpu"], "cores"),
    ]


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--offered", type=float, nargs="+", default=[8000, 12000, 16000, 20000])
    parser.add_argument("--routes", nargs="+", choices=_ROUTES, default=["generate_stream"])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--load-core", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        uvloop.run(run_transport(arguments.clients, arguments.serve, arguments.load_core))
        return
    results = []
    print("route            offered/s  events/s  events/read  p50 ms  p90 ms  p99 ms  cpu")
    for route in arguments.routes:
        for offered in arguments.offered:
            result = measure(arguments, route, offered)
            results.append(result)
            latency = result["latency_ms"]
            print(
                f"{route:16} {offered:9.0f} {result['events_per_s']:9.0f} "
                f"{result['events_per_read']:12.2f} {latency['p50']:7.2f} {latency['p90']:7.2f} "
                f"{latency['p99']:7.2f} {result['cpu']:5.2f}"
                + (f"  {result['errors']} errors" if result["errors"] else ""),
                flush=True,
            )
    if arguments.record is not None:
        names = ("uvicorn", "uvloop", "httptools", "fastapi", "starlette", "msgspec", "pyzmq")
        every = [row for result in results for row in rows(result, arguments.clients)]
        own_record(processor(), every, versions_of(*names), seed=0).write(arguments.record)


if __name__ == "__main__":
    main()
