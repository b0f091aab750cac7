"""The two ends of the channel between transport and engine: one ZeroMQ PAIR over a Unix socket.

The socket lives in a directory that only this user can enter. A channel serves one engine
process: after its death the transport opens a fresh one, so that no stale message arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from headrace.link.messages import FromEngine, ToEngine

_SOCKET_NAME = "engine.sock"


def _pair() -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
    socket.setsockopt(zmq.LINGER, 0)
    # The sender never blocks: the queue is bounded by the number of admitted requests instead.
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    return socket


class TransportChannel:
    """The end of the channel that the HTTP process (or any other client of an engine) holds.

    Args:
        receive: Called in the event loop for every message from the engine, in order.
        on_garbage: Called with a description of a message that does not decode.
    """

    def __init__(
        self,
        receive: Callable[[FromEngine], None],
        on_garbage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._receive = receive
        self._on_garbage = on_garbage
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._directory = Path(tempfile.mkdtemp(prefix="headrace-"))
        self._socket = _pair()
        self._socket.bind(self.address)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def address(self) -> str:
        """ZeroMQ address for the engine's end."""
        return f"ipc://{self._directory / _SOCKET_NAME}"

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to deliver messages in ``loop``."""
        self._loop = loop
        loop.add_reader(self._socket.fileno(), self.drain)
        loop.call_soon(self.drain)

    def send(self, message: ToEngine) -> None:
        """Queue one message; never blocks. It is lost where no engine is connected."""
        # An engine that is not connected is starting or dead: its supervisor knows either.
        with contextlib.suppress(zmq.Again):
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        # ZeroMQ's descriptor is edge-triggered and a send may swallow the edge of a receive.
        if self._loop is not None:
            self._loop.call_soon(self.drain)

    def drain(self) -> None:
        """Deliver every message that has arrived."""
        while not self._socket.closed:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = self._decoder.decode(frame)
            except msgspec.MsgspecError as error:
                self._on_garbage(f"undecodable message of {len(frame)} bytes: {error}")
                continue
            self._receive(message)

    def close(self) -> None:
        """Stop delivering and remove the socket and its directory."""
        if self._socket.closed:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        remove_socket(self.address)


def remove_socket(address: str) -> None:
    """Remove a channel's socket, and its directory where nothing else is in it."""
    socket = Path(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError):
        socket.unlink(missing_ok=True)
        socket.parent.rmdir()


class EngineChannel:
    """The engine's end: blocking or polling receive, immediate send."""

    def __init__(self, address: str) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._socket = _pair()
        self._socket.connect(address)

    def send(self, message: FromEngine) -> None:
        """Queue one message; never blocks."""
        self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)

    def receive(self, timeout_seconds: float = 0.0) -> list[ToEngine]:
        """All messages that have arrived, waiting up to ``timeout_seconds`` for the first."""
        messages: list[ToEngine] = []
        if timeout_seconds > 0 and not self._socket.poll(int(timeout_seconds * 1000)):
            return messages
        while True:
            try:
                messages.append(self._decoder.decode(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def close(self) -> None:
        """Send what is queued (for a second at most) and close."""
        self._socket.close(linger=1000)
