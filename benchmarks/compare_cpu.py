"""headrace and its peers on this machine's CPU, one after the other in one run; writes records.

    python benchmarks/compare_cpu.py --gguf MODEL.gguf --hf HF_DIR \
        --vllm PYTHON_OF_ITS_VENV --llama PYTHON_OF_ITS_VENV --out benchmarks/records

``--hf`` is what ``peers/export_builtin.py`` writes from the same GGUF; how the peers' environments
are made stands in their scripts. The machine should be idle otherwise. A peer that is not named
is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headrace.benchmark.provenance import command_line, commit_of, device_slug, versions_of
from headrace.benchmark.record import Record, Row, median_row
from headrace.hardware.processor import processor

HERE = Path(__file__).parent
PEERS = HERE / "peers"


def run(command: list[str], **env: str) -> dict[str, object]:
    """The JSON line that a measuring script prints; what it loads may print more."""
    print("$", " ".join(command), flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **env}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"system"')]
    answer = json.loads(lines[-1])
    for row in answer["rows"]:
        print(f"  {row['metric']:26} batch {row['batch']:3}  {row['value']:10.2f} {row['unit']}")
    assert isinstance(answer, dict)
    return answer


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def served(command: list[str], port: int, health: str, **env: str) -> Iterator[float]:
    """A server that is ready; yields the seconds from process start to ready."""
    print("$", " ".join(command), flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **env},
        start_new_session=True,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}{health}", timeout=1)
                break
            if process.poll() is not None:
                raise RuntimeError(f"server exited with {process.returncode}")
            time.sleep(0.01)
        yield time.perf_counter() - started
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def first_token_seconds(port: int) -> float:
    """Seconds to the first event of the first request."""
    body = json.dumps({"inputs": "The sky is", "parameters": {"max_new_tokens": 2}}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate_stream", body, {"content-type": "application/json"}
    )
    started = time.perf_counter()
    with urllib.request.urlopen(request) as reply:
        reply.readline()
    return time.perf_counter() - started


SERVE_FLAGS = {"bf16": ["--no-packed-weights"], "q4_1": []}


def headrace_rows(gguf: str, formats: list[str], engine_only: bool) -> list[Row]:
    """Engine alone, HTTP and start, with bf16 weights and with the file's own."""
    rows: list[Row] = []
    for weights in formats:
        answer = run([sys.executable, str(PEERS / "headrace_engine.py"), gguf, weights])
        rows += rows_of(answer)
        if engine_only:
            continue
        flags = SERVE_FLAGS[weights]
        starts, firsts = [], []
        for repeat in range(3):
            port = free_port()
            command = [sys.executable, "-m", "headrace.cli", "serve", gguf, *flags]
            with served([*command, "--port", str(port)], port, "/ready") as seconds:
                starts.append(seconds)
                firsts.append(first_token_seconds(port))
                if repeat == 2:
                    url = f"http://127.0.0.1:{port}"
                    client = [sys.executable, str(PEERS / "http_stream.py"), url]
                    rows += rows_of(run([*client, "headrace", "", weights]))
        rows.append(median_row("ready_s", starts, "s", weights=weights))
        rows.append(median_row("first_token_after_ready_s", firsts, "s", weights=weights))
        print(f"  ready {starts} s, first token after {firsts} s")
    return rows


def vllm_rows(python: str, hf: str) -> tuple[str, list[Row]]:
    """Engine alone and its OpenAI server."""
    env = {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_CPU_KVCACHE_SPACE": "2"}
    answer = run([python, str(PEERS / "vllm_cpu_bf16.py"), hf], **env)
    rows, port = rows_of(answer), free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", hf]
    options = ["--dtype", "bfloat16", "--max-model-len", "2048", "--no-enable-prefix-caching"]
    with served([*command, *options, "--port", str(port)], port, "/health", **env) as seconds:
        rows.append(median_row("ready_s", [seconds], "s", weights="bf16"))
        print(f"  ready {seconds} s")
        url = f"http://127.0.0.1:{port}"
        client = [sys.executable, str(PEERS / "http_stream.py"), url, "vllm-cpu", "", "bf16"]
        rows += rows_of(run(client))
    return str(answer["version"]), rows


def rows_of(answer: dict[str, object]) -> list[Row]:
    """The rows that a measuring script printed."""
    return msgspec.convert(answer["rows"], list[Row])


def main() -> None:
    """Measure whatever is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--hf")
    parser.add_argument("--vllm", help="python of the environment that has vllm-cpu")
    parser.add_argument("--llama", help="python of the environment that has llama-cpp-python")
    parser.add_argument("--transformers", action="store_true", help="with this environment's own")
    parser.add_argument(
        "--weights", nargs="+", choices=tuple(SERVE_FLAGS), default=list(SERVE_FLAGS)
    )
    parser.add_argument("--engine-only", action="store_true", help="no HTTP, no start")
    parser.add_argument("--peers-only", action="store_true", help="headrace was measured just now")
    parser.add_argument("--out", type=Path, default=HERE / "records")
    options = parser.parse_args()

    def write(system: str, version: str, rows: list[Row]) -> None:
        Record(
            device=processor(),
            versions=versions_of("torch", "transformers") | {system: version},
            commit=commit_of(HERE),
            command=command_line(),
            system=system,
            rows=rows,
        ).write(options.out / f"{device_slug(processor())}-{system}.json")

    if not options.peers_only:
        write(
            "headrace",
            versions_of("headrace").get("headrace", ""),
            headrace_rows(options.gguf, options.weights, options.engine_only),
        )
    if options.vllm and options.hf:
        write("vllm-cpu", *vllm_rows(options.vllm, options.hf))
    if options.transformers and options.hf:
        answer = run([sys.executable, str(PEERS / "transformers_bf16.py"), options.hf])
        write("transformers", str(answer["version"]), rows_of(answer))
    if options.llama:
        script = str(PEERS / "llama_cpp_gguf.py")
        answer = run([options.llama, script, options.gguf, "q4_1"])
        write("llama.cpp", str(answer["version"]), rows_of(answer))


if __name__ == "__main__":
    main()
