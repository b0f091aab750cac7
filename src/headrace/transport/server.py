"""Runs the application on uvicorn until a signal comes, then drains it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import Callable, Iterator

import structlog
import uvicorn
from fastapi import FastAPI

from headrace.link.errors import ErrorCode
from headrace.transport.connection import connection_class
from headrace.transport.errors import RequestFailure
from headrace.transport.listening import BACKLOG, bind
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings

_log = structlog.get_logger("headrace.transport")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# For error events and last tokens to reach clients that read.
_FLUSH_SECONDS = 5.0
# Requests leave few cycles behind: frequent collections would only pause every stream.
_COLLECTION_THRESHOLDS = (50_000, 20, 100)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which ends the process by the signal it caught."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ``serve``'s."""
        yield


async def serve(
    app: FastAPI,
    settings: TransportSettings,
    *,
    listener: socket.socket | None = None,
    stop: asyncio.Event | None = None,
    on_listening: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve until SIGTERM or SIGINT or until ``stop`` is set, then drain.

    Draining: nothing new is let in (``/ready`` says 503, so do new requests), what runs gets
    ``graceful_termination_timeout`` seconds, the rest is told that the server shuts down.
    A second signal ends the grace time.

    Args:
        app: From ``create_app``.
        listener: From ``bind``; made from ``settings`` when absent.
        on_listening: Called with the port once connections are accepted.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    service: Service = app.state.service
    listener = bind(settings) if listener is None else listener
    server = _Server(
        uvicorn.Config(
            app,
            http=connection_class(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(settings.keep_alive_timeout),
            timeout_graceful_shutdown=int(_FLUSH_SECONDS),
        )
    )
    leave = asyncio.Event() if stop is None else stop
    hurry = asyncio.Event()
    with _signals(leave, hurry):
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started and not task.done():
                await asyncio.sleep(0.005)
            if not task.done():
                on_listening(listener.getsockname()[1])
                # Made before anybody asks for it, since that takes a moment.
                await asyncio.to_thread(app.openapi)
                _exempt_startup_objects_from_collection()
            leaving = asyncio.create_task(leave.wait())
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            leaving.cancel()
            await _drain(service, settings, hurry)
        finally:
            server.should_exit = True
            await task
            service.encoder.close()


async def _drain(service: Service, settings: TransportSettings, hurry: asyncio.Event) -> None:
    service.admission.close()
    running = service.admission.in_flight
    grace = settings.graceful_termination_timeout
    _log.info("draining", running=running, grace_seconds=grace)
    idle = asyncio.create_task(service.admission.wait_idle())
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({idle, hurried}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not idle.done():
        _log.warning("ending what still runs", running=service.admission.in_flight)
        service.client.fail_all(
            RequestFailure.of_code(ErrorCode.SHUTTING_DOWN, "the server is shutting down")
        )
        await asyncio.wait({idle}, timeout=_FLUSH_SECONDS)
    idle.cancel()


def _exempt_startup_objects_from_collection() -> None:
    """Spare every full collection the modules and schemas, which live as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECTION_THRESHOLDS)


@contextlib.contextmanager
def _signals(leave: asyncio.Event, hurry: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``leave``, a second one sets ``hurry``."""

    def on_signal() -> None:
        (hurry if leave.is_set() else leave).set()

    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    # A loop in a thread that is not the main one cannot handle signals: `stop` remains.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in _SIGNALS:
            loop.add_signal_handler(number, on_signal)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
