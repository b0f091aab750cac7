"""What a GPU engine says when the device fails it: a script for a machine with a GPU.

Four cases, each with a real engine process under the real supervisor:

- ``device error``: a kernel reads far out of its memory in the middle of a step. Every request in
  flight must be told, the engine must be started again, and the next request must be served.
- ``too large``: a model whose weights do not fit is refused with what it needs and what there is.
- ``out of memory``: a warm-up whose largest step does not fit names the limits to lower.
- ``corrupt tuning file``: it is reported, measured again and replaced.

Prints one JSON line a case; 1 if one of them is not as described.

    PYTHONPATH=src python tests/kernels/triton/engine_faults.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.benchmark.offline.stand_in import stand_in_directory
from headrace.checkpoint.shapes import shape
from headrace.engine.restart_policy import RestartPolicy
from headrace.engine.settings import EngineSettings
from headrace.engine.supervisor import ENGINE_COMMAND, Supervisor
from headrace.link.errors import ConfigurationError
from headrace.link.messages import Submit
from headrace.link.sampling import SamplingParams
from headrace.transport.engine_client import EngineClient, ReplyStream
from headrace.transport.errors import RequestFailure

REQUESTS, NEW_TOKENS, FAULT_STEP = 8, 400, 60


def engine_with_a_fault(marker: Path, kind: str) -> None:
    """This process is the engine; its first life ends in a device error at one step."""
    import torch

    from headrace.engine import __main__ as engine_main
    from headrace.engine import core

    step, steps = core.Engine.step, 0

    def faulty(self: core.Engine) -> core.StepEvents:
        nonlocal steps
        steps += 1
        if steps == FAULT_STEP and not marker.exists():
            marker.touch()
            if kind == "cuda":
                # An index far outside of a table: the device stops with an assertion or a fault.
                table = torch.zeros(4, device="cuda")
                table[torch.full((8,), 1 << 30, device="cuda")] += 1.0
            else:
                raise RuntimeError("a fault of this dry run")
        return step(self)

    core.Engine.step = faulty  # type: ignore[method-assign]
    sys.exit(engine_main.main())


def requests_of(client: EngineClient, count: int, new_tokens: int) -> list[ReplyStream]:
    """As many requests, each a reply stream of its own."""
    sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True, seed=0)
    streams = []
    for number in range(count):
        request_id = client.new_request_id()
        ids = [10 + (number * 31 + index) % 1000 for index in range(20 + number)]
        streams.append(
            client.submit([Submit(request_id=request_id, token_ids=ids, sampling=sampling)])
        )
    return streams


async def outcome(stream: ReplyStream) -> tuple[int, str]:
    """Tokens that came, and how the request ended."""
    tokens = 0
    try:
        while True:
            for output in await stream.receive():
                tokens += len(output.token_ids)
                if output.finish_reason is not None:
                    return tokens, output.finish_reason
    except RequestFailure as failure:
        return tokens, f"{failure.error_type}: {failure}"


async def device_error(settings: EngineSettings, kind: str) -> dict[str, Any]:
    """Serve until the device fails, then after the restart."""
    with tempfile.TemporaryDirectory() as directory:
        marker = Path(directory) / "failed-once"
        command = (sys.executable, __file__, "--as-engine", str(marker), "--fault", kind)
        client = EngineClient()
        supervisor = Supervisor(
            settings, client, RestartPolicy(first_delay_seconds=0.1), command=command
        )
        life = asyncio.create_task(supervisor.run())
        try:
            async with asyncio.timeout(240):
                await client.wait_ready()
                first_pid = supervisor.pid
                streams = requests_of(client, REQUESTS, NEW_TOKENS)
                ends = await asyncio.gather(*map(outcome, streams))
                failed = time.perf_counter()
                await client.wait_ready()
                again = time.perf_counter() - failed
                after = await outcome(requests_of(client, 1, 16)[0])
        finally:
            await supervisor.stop()
            await life
    told = [end for _, end in ends]
    return {
        "case": "device error", "tokens_before": [tokens for tokens, _ in ends],
        "told": sorted(set(told)), "seconds_to_ready_again": round(again, 2),
        "another_process": supervisor.pid != first_pid, "after": after,
        "bad": not (
            all("lost" in end for end in told)
            and all(0 < tokens < NEW_TOKENS for tokens, _ in ends)
            and after == (16, "length")
        ),
    }  # fmt: skip


async def refusal(case: str, settings: EngineSettings, wanted: tuple[str, ...]) -> dict[str, Any]:
    """An engine that cannot start; the one line that it ends with."""
    supervisor = Supervisor(settings, EngineClient(), command=ENGINE_COMMAND)
    said = "it started"
    try:
        async with asyncio.timeout(120):
            await supervisor.run()
    except (ConfigurationError, TimeoutError) as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        await supervisor.stop(0.0)
    return {"case": case, "said": said, "bad": not all(part in said for part in wanted)}


async def served_once(settings: EngineSettings) -> str:
    """Start an engine, serve one request, stop it."""
    client = EngineClient()
    supervisor = Supervisor(settings, client)
    life = asyncio.create_task(supervisor.run())
    try:
        async with asyncio.timeout(300):
            await client.wait_ready()
            return (await outcome(requests_of(client, 1, 8)[0]))[1]
    finally:
        await supervisor.stop()
        await life


async def corrupt_tuning(settings: EngineSettings) -> dict[str, Any]:
    """A tuning file that is no JSON: the engine measures again and writes a whole one."""
    with tempfile.TemporaryDirectory() as directory:
        before = os.environ.get("HEADRACE_CACHE")
        os.environ["HEADRACE_CACHE"] = directory
        try:
            ends = [await served_once(settings)]
            [path] = (Path(directory) / "tuning").glob("*.json")
            path.write_text('{"validators": 7')
            ends.append(await served_once(settings))
            whole = "validators" in json.loads(path.read_text())
        finally:
            if before is None:
                del os.environ["HEADRACE_CACHE"]
            else:
                os.environ["HEADRACE_CACHE"] = before
    return {
        "case": "corrupt tuning file", "ends": ends, "replaced": whole,
        "bad": ends != ["length", "length"] or not whole,
    }  # fmt: skip


def main() -> int:
    """Run the cases; 1 if one is not as described."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llama3-1b")
    parser.add_argument("--device", default="cuda", help="cpu: a dry run of the first case")
    parser.add_argument("--fault", choices=("cuda", "python"), default="cuda")
    parser.add_argument("--as-engine", type=Path, metavar="MARKER", help="used by the script")
    parser.add_argument("address", nargs="?", help="used by the script")
    arguments = parser.parse_args()
    if arguments.as_engine is not None:
        # The engine's own main reads its address from there.
        sys.argv = [sys.argv[0], arguments.address]
        engine_with_a_fault(arguments.as_engine, arguments.fault)
    bad = 0

    def tell(result: dict[str, Any]) -> None:
        nonlocal bad
        bad += result["bad"]
        print(json.dumps(result), flush=True)

    def on(model: str, action: Callable[[EngineSettings], Any], **settings: Any) -> None:
        with stand_in_directory(shape(model)) as directory:
            tell(
                asyncio.run(
                    action(
                        EngineSettings(
                            model=directory, device=arguments.device, random_weights_seed=0,
                            max_total_tokens=2048, kv_cache_bytes=2 << 30, log_level="warning",
                            **settings,
                        )
                    )
                )
            )  # fmt: skip

    os.environ["HEADRACE_TUNED_GEMM"] = "off"
    on(arguments.model, lambda settings: device_error(settings, arguments.fault))
    if arguments.device == "cpu":
        return int(bad > 0)
    on(
        "llama3-70b",
        lambda settings: refusal("too large", settings, ("GiB", "--model-id", "free on cuda")),
    )
    on(
        arguments.model,
        lambda settings: refusal(
            "out of memory", settings, ("out of memory", "--max-batch-prefill-tokens")
        ),
        max_batch_prefill_tokens=5_000_000,
    )
    os.environ["HEADRACE_TUNED_GEMM"] = "on"
    on("smollm2-135m", corrupt_tuning)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
