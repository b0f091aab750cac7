"""A server in a process of its own: SIGTERM, and a port in use."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from headrace.link.errors import ConfigurationError
from headrace.transport.listening import bind
from headrace.transport.settings import TransportSettings

SOURCE = Path(__file__).parents[2] / "src"
PROGRAM = """
import asyncio
import uvloop
from headrace.checkpoint.chat_template import ChatTemplate
from headrace.checkpoint.resolve import resolve
from headrace.transport.app import create_app
from headrace.transport.engine_client import EngineClient
from headrace.transport.served_model import ServedModel
from headrace.transport.server import serve
from headrace.transport.settings import TransportSettings

async def main():
    checkpoint = resolve(None)
    model = ServedModel(
        model_id="m",
        tokenizer=checkpoint.load_tokenizer(),
        chat_template=ChatTemplate(checkpoint.chat_templates, checkpoint.special_tokens),
    )
    settings = TransportSettings(hostname="127.0.0.1", port=0)
    app = create_app(settings, model, EngineClient())
    await serve(app, settings, on_listening=lambda port: print(port, flush=True))
    print("drained", flush=True)

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_in_order(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(SOURCE), "PATH": "", "HOME": str(Path.home())},
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        process.send_signal(number)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out.endswith(b"drained\n")


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127.0.0.1:{port}.*in use"):
            bind(TransportSettings(hostname="127.0.0.1", port=port))


def test_an_address_that_does_not_exist_is_one_clear_line() -> None:
    with pytest.raises(ConfigurationError, match="cannot listen on"):
        bind(TransportSettings(hostname="no.such.host.invalid", port=0))
