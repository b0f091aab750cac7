"""A real server on a real socket, over a scripted engine on the other end of the real link."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import structlog
import uvloop

from headrace.checkpoint.chat_template import ChatTemplate
from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.channel import TransportChannel
from headrace.transport.app import create_app
from headrace.transport.engine_client import EngineClient
from headrace.transport.served_model import ServedModel
from headrace.transport.server import serve
from headrace.transport.settings import TransportSettings

# Tests are collected without packages: a helper beside them is loaded by its path.
_SPEC = importlib.util.spec_from_file_location(
    "null_engine", Path(__file__).with_name("null_engine.py")
)
assert _SPEC is not None
assert _SPEC.loader is not None
null_engine = importlib.util.module_from_spec(_SPEC)
sys.modules["null_engine"] = null_engine
_SPEC.loader.exec_module(null_engine)

TEXT = "Hello, wörld! 🌍 One two three."
SETTINGS = TransportSettings(hostname="127.0.0.1", port=0, graceful_termination_timeout=2.0)


class Server:
    """A server in a thread of its own, with its engine."""

    def __init__(self, settings: TransportSettings, model: ServedModel, script: list[int]) -> None:
        self._settings = settings
        self._model = model
        self._script = script
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._listening = threading.Event()
        self.finished = threading.Event()
        self.loop: asyncio.AbstractEventLoop
        self.client: EngineClient
        self.engine = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(20)

    def start_engine(self) -> None:
        """A new incarnation of the engine, as the supervisor would start it."""

        def attach() -> str:
            self._channel = TransportChannel(self.client.receive)
            self._channel.attach(self.loop)
            self.client.attach(self._channel)
            return self._channel.address

        address = self.call(attach)
        eos_id = self._model.tokenizer.eos_id
        self.engine = null_engine.NullEngine(address, self._script, eos_id)
        self.engine.start()
        self.wait(lambda: self.client.ready)

    def kill_engine(self) -> None:
        """As the supervisor reports the death of its process."""
        self.engine.stop()
        self.call(lambda: (self.client.engine_lost("killed by the test"), self._channel.close()))

    def call(self, function: Callable[[], object]) -> object:
        async def run() -> object:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    def begin_shutdown(self) -> None:
        self.call(self.stop_event.set)

    def stop(self) -> None:
        if not self.finished.is_set():
            with contextlib.suppress(RuntimeError):
                self.begin_shutdown()
        if self.engine is not None:
            self.engine.held.clear()
            self.engine.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def wait(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "the condition was not met in time"
            time.sleep(0.005)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._main())
        self.finished.set()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stop_event = asyncio.Event()
        self.client = EngineClient()
        app = create_app(self._settings, self._model, self.client)
        self.app = app
        await serve(app, self._settings, stop=self.stop_event, on_listening=self._on_listening)

    def _on_listening(self, port: int) -> None:
        self.port = port
        self._listening.set()


@pytest.fixture(scope="session", autouse=True)
def _few_log_lines() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return resolve(None)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return checkpoint.load_tokenizer()


@pytest.fixture(scope="session")
def served_model(checkpoint: Checkpoint, tokenizer: Tokenizer) -> ServedModel:
    return ServedModel(
        model_id="null-model",
        tokenizer=tokenizer,
        chat_template=ChatTemplate(checkpoint.chat_templates, checkpoint.special_tokens),
    )


@pytest.fixture(scope="module")
def start_server(served_model: ServedModel) -> Iterator[Callable[..., Server]]:
    """Starts servers with given settings; stops them at the end."""
    servers: list[Server] = []

    def start(*, engine: bool = True, **settings: object) -> Server:
        script = served_model.tokenizer.encode(TEXT, add_special_tokens=False)
        server = Server(replace(SETTINGS, **settings), served_model, script)
        servers.append(server)
        server.start()
        if engine:
            server.start_engine()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start_server: Callable[..., Server]) -> Server:
    """A server with ordinary settings, shared by a module's tests."""
    return start_server()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture
def engine(server: Server):  # type: ignore[no-untyped-def]
    """The engine of ``server``, with nothing recorded yet."""
    server.engine.submits.clear()
    server.engine.aborted.clear()
    return server.engine


@pytest.fixture
def text() -> str:
    """What the engine answers."""
    return TEXT
