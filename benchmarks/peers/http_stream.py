"""Streaming over HTTP, end to end, against any OpenAI-compatible server; standard library only.

    python http_stream.py URL SYSTEM VERSION WEIGHTS

Every client streams one legacy completion of 128 new tokens from 128 fresh random prompt ids, all
at once; output tokens per second is (clients x 128) over the time from the first request to the
last event. Raw sockets: the client shares the machine's cores with the server it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request

from workload import BATCHES, FIRST_ID, LAST_ID, PROMPT, report, row

NEW_TOKENS = 128
REPEATS = 5


async def one(host: str, port: int, model: str, prompt: list[int]) -> tuple[float, int]:
    """Time to the first event in seconds, and number of events."""
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": NEW_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    reader, writer = await asyncio.open_connection(host, port)
    started = time.perf_counter()
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    first, events, tail = 0.0, 0, b""
    while data := await reader.read(65536):
        seen = (tail + data).count(b"data: ")
        if seen and not first:
            first = time.perf_counter() - started
        events += seen
        tail = (tail + data)[-5:] if not (tail + data).endswith(b"data: ") else b""
    writer.close()
    if events < 2:
        raise RuntimeError(f"no stream: {data!r} {tail!r}")
    return first, events


async def run(host: str, port: int, model: str, clients: int) -> tuple[float, float]:
    """Output tokens per second, median time to first event in milliseconds."""
    rng = random.Random()
    prompts = [[rng.randrange(FIRST_ID, LAST_ID) for _ in range(PROMPT)] for _ in range(clients)]
    started = time.perf_counter()
    replies = await asyncio.gather(*(one(host, port, model, prompt) for prompt in prompts))
    seconds = time.perf_counter() - started
    return clients * NEW_TOKENS / seconds, 1e3 * statistics.median(r[0] for r in replies)


def main() -> None:
    """See the module."""
    url, system, version, weights = sys.argv[1:]
    host, port = url.removeprefix("http://").split(":")
    with urllib.request.urlopen(f"{url}/v1/models") as reply:
        model = json.load(reply)["data"][0]["id"]
    rows: list[dict[str, object]] = []
    for clients in BATCHES:
        asyncio.run(run(host, int(port), model, clients))
        samples = [asyncio.run(run(host, int(port), model, clients)) for _ in range(REPEATS)]
        rows.append(row("http_output_tokens_per_s", clients, "1/s", [s[0] for s in samples]))
        rows.append(row("ttft_ms", clients, "ms", [s[1] for s in samples]))
    report(system, version, weights, rows)


if __name__ == "__main__":
    main()
