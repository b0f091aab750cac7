"""Resident memory of the server, both processes, while clients hold contexts in its KV cache.

The server is started as ``headrace serve`` starts it. Every client sends a prompt of its own and
generates until its context has ``--context`` tokens; the proportional set size (``/proc``'s Pss,
which counts a shared page once) of the server and its children is sampled meanwhile. The largest
sample is the figure.

    python benchmarks/resident_memory.py --out benchmarks/records/cpu-zen4-resident-memory.json
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, own_record
from headrace.hardware.processor import processor

MIB = 2**20
NEW_TOKENS = 64
START_SECONDS = 240


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_bytes(server: psutil.Process) -> dict[str, int]:
    """Proportional set size of the server's process and of each child, by what it runs."""
    sizes: dict[str, int] = {}
    for process in (server, *server.children(recursive=True)):
        try:
            name = "engine" if "headrace.engine" in process.cmdline() else "transport"
            sizes[name] = sizes.get(name, 0) + int(process.memory_full_info().pss)
        except psutil.NoSuchProcess:
            continue
    return sizes


async def until_ready(client: httpx.AsyncClient, server: subprocess.Popen[bytes]) -> None:
    """Wait for the server's ``/ready``."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}")
        try:
            if (await client.get("/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.25)
    raise SystemExit(f"the server was not ready after {START_SECONDS} s")


async def count_tokens(client: httpx.AsyncClient, text: str) -> int:
    """Number of tokens of ``text`` as the server encodes it."""
    answer = await client.post("/tokenize", json={"inputs": text})
    answer.raise_for_status()
    return len(answer.json())


async def prompt_of(client: httpx.AsyncClient, number: int, tokens: int) -> str:
    """A text of so many tokens that shares no prefix with those of other numbers."""
    words = tokens
    while await count_tokens(client, text := f"{number}:" + " river" * words) > tokens:
        words -= 1
    return text


async def hold(client: httpx.AsyncClient, prompt: str, new_tokens: int) -> int:
    """Generate; the number of tokens that came."""
    parameters = {"max_new_tokens": new_tokens, "details": True, "ignore_eos": True}
    answer = await client.post("/generate", json={"inputs": prompt, "parameters": parameters})
    answer.raise_for_status()
    return int(answer.json()["details"]["generated_tokens"])


async def measure(options: argparse.Namespace) -> list[dict[str, int]]:
    """Samples from the first request to the last answer."""
    port = free_port()
    command = [sys.executable, "-m", "headrace.cli", "serve", "--port", str(port)]
    command += shlex.split(options.serve)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples: list[dict[str, int]] = []
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, timeout=START_SECONDS) as client:
            await until_ready(client, server)
            watched = psutil.Process(server.pid)
            samples.append(resident_bytes(watched))
            length = options.context - NEW_TOKENS
            prompts = [await prompt_of(client, i, length) for i in range(options.clients)]
            work = asyncio.gather(*(hold(client, prompt, NEW_TOKENS) for prompt in prompts))
            while not work.done():
                samples.append(resident_bytes(watched))
                await asyncio.sleep(0.1)
            if set(await work) != {NEW_TOKENS}:
                raise SystemExit(f"answers of other lengths: {await work}")
            samples.append(resident_bytes(watched))
    finally:
        server.terminate()
        server.wait(timeout=60)
    return samples


def main() -> None:
    """Measure, print and perhaps record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--context", type=int, default=1024, help="tokens of each client")
    parser.add_argument("--serve", default="", help="flags of headrace serve, one string")
    parser.add_argument("--kv", default="bf16", help="name of the cache's dtype in the record")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    samples = asyncio.run(measure(options))
    peak = max(samples, key=lambda sample: sum(sample.values()))
    for name, sample in (("ready", samples[0]), ("peak", peak)):
        parts = ", ".join(f"{part} {size / MIB:.0f}" for part, size in sorted(sample.items()))
        print(f"{name}: {sum(sample.values()) / MIB:.0f} MiB ({parts})")
    if options.out is None:
        return
    rows = [
        Row(
            metric=f"resident_memory_{name}",
            value=sum(sample.values()) / 1e6,
            unit="MB",
            samples=[sum(one.values()) / 1e6 for one in taken],
            batch=options.clients,
            context=options.context,
            kv=options.kv,
            conditions={"serve": options.serve}
            | {part: size / 1e6 for part, size in sample.items()},
        )
        for name, sample, taken in (("ready", samples[0], samples[:1]), ("peak", peak, samples))
    ]
    versions = versions_of("torch")
    own_record(processor(), rows, versions, model="SmolLM2-135M-Instruct Q4_1").write(options.out)


if __name__ == "__main__":
    main()
