"""Both processes of a server: the engine is started first, HTTP is set up while it warms up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.engine.settings import EngineSettings
from headrace.engine.supervisor import Supervisor
from headrace.transport.engine_client import EngineClient
from headrace.transport.settings import TransportSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

_ENGINE_GRACE_SECONDS = 5.0


async def run_server(
    listener: socket.socket,
    checkpoint: Checkpoint,
    engine: EngineSettings,
    transport: TransportSettings,
    on_ready: Callable[[int], None],
) -> None:
    """Serve until a signal ends it; then drain HTTP, then the engine.

    Args:
        listener: From ``transport.listening.bind``.
        on_ready: Called once with the port, when the first request can be taken.

    Raises:
        ConfigurationError: the engine refuses its settings or the model.
        EngineGaveUp: the engine died too often.
    """
    client = EngineClient()
    supervisor = Supervisor(engine, client)
    life = asyncio.create_task(supervisor.run())
    try:
        # In a thread, so that the engine process is started meanwhile.
        app = await asyncio.to_thread(_make_app, checkpoint, transport, client)
        await _serve_while(life, app, transport, listener, client, on_ready)
    finally:
        # An engine that is not ready has nothing to finish.
        await supervisor.stop(_ENGINE_GRACE_SECONDS if client.ready else 0.0)
        # What the engine died of, where it did, is raised here.
        await life


def _make_app(checkpoint: Checkpoint, settings: TransportSettings, client: EngineClient) -> FastAPI:
    # Imported here, while the engine process imports torch.
    from headrace.transport.app import create_app
    from headrace.transport.served_model import ServedModel

    model = ServedModel(
        model_id=settings.served_model_name or checkpoint.model_id,
        tokenizer=checkpoint.load_tokenizer(),
        chat_template=checkpoint.load_chat_template(),
        revision=checkpoint.sha,
    )
    return create_app(settings, model, client)


async def _serve_while(
    life: asyncio.Task[None],
    app: FastAPI,
    settings: TransportSettings,
    listener: socket.socket,
    client: EngineClient,
    on_ready: Callable[[int], None],
) -> None:
    """Serve until a signal comes or the engine's ``life`` is over."""
    from headrace.transport.server import serve

    announcement: list[asyncio.Task[None]] = []

    def on_listening(port: int) -> None:
        announcement.append(asyncio.create_task(_announce(client, port, on_ready)))

    serving = asyncio.create_task(
        serve(app, settings, listener=listener, on_listening=on_listening)
    )
    try:
        await asyncio.wait({serving, life}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
    finally:
        for task in (serving, *announcement):
            task.cancel()
        await asyncio.wait({serving})


async def _announce(client: EngineClient, port: int, on_ready: Callable[[int], None]) -> None:
    await client.wait_ready()
    on_ready(port)
