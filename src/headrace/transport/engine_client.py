"""The transport's side of the link: who waits for which outputs of the engine."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import structlog
import zmq

from headrace.link.channel import TransportChannel
from headrace.link.errors import ErrorCode
from headrace.link.messages import (
    Abort,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    RequestFailed,
    RequestOutput,
    StepOutput,
    Submit,
    ToEngine,
)
from headrace.transport.errors import RequestFailure

_log = structlog.get_logger("headrace.transport")

_NOT_READY_RETRY_SECONDS = 5


class ClientGone(Exception):
    """The HTTP client closed its connection; nobody is left to answer."""


class ReplyStream:
    """Outputs of the sequences of one HTTP request, in the order in which they arrive."""

    __slots__ = ("_client", "_ending", "_outputs", "_running", "_waiter")

    def __init__(self, client: EngineClient, request_ids: Sequence[int]) -> None:
        self._client = client
        self._running = set(request_ids)
        self._outputs: list[RequestOutput] = []
        self._waiter: asyncio.Future[None] | None = None
        self._ending: Exception | None = None

    async def receive(self) -> list[RequestOutput]:
        """All outputs since the last call; waits for the first.

        Raises:
            RequestFailure: one of the sequences failed; the others are aborted.
            ClientGone: the HTTP client is no longer there.
        """
        if not self._outputs:
            if self._ending is None:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                self._waiter = None
            if not self._outputs and self._ending is not None:
                raise self._ending
        outputs, self._outputs = self._outputs, []
        return outputs

    def deliver(self, output: RequestOutput) -> None:
        """Take one output of a running sequence."""
        if output.finish_reason is not None:
            self._running.discard(output.request_id)
        self._outputs.append(output)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def end(self, reason: Exception) -> None:
        """Abort what runs; ``receive`` raises ``reason`` once the outputs so far are taken."""
        if self._ending is None:
            self._ending = reason
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def abort(self, request_id: int) -> None:
        """Stop one sequence: its text has met a stop string."""
        if request_id in self._running:
            self._running.discard(request_id)
            self._client.abort([request_id])

    def close(self) -> None:
        """Abort whatever still runs."""
        if self._running:
            self._client.abort(list(self._running))
            self._running.clear()


class EngineClient:
    """Sends requests to the engine of the moment and hands its outputs to those who wait.

    The supervisor calls ``attach`` for every engine process that it starts, ``receive`` with its
    messages and ``engine_lost`` at its end.
    """

    def __init__(self) -> None:
        self._channel: TransportChannel | None = None
        self._streams: dict[int, ReplyStream] = {}
        self._ids = itertools.count(1)
        self._ready: EngineReady | None = None
        self._limits: EngineReady | None = None
        self._stats: EngineStats | None = None
        self._became_ready = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether an engine is warm and can take work."""
        return self._ready is not None

    @property
    def limits(self) -> EngineReady | None:
        """What the latest engine said at its warmup; survives its death, ``None`` before."""
        return self._limits

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters that the latest engine serves."""
        return [] if self._limits is None else self._limits.adapters

    @property
    def stats(self) -> EngineStats | None:
        """The latest snapshot of the living engine."""
        return self._stats

    @property
    def waiting(self) -> int:
        """Sequences that wait for outputs."""
        return len(self._streams)

    async def wait_ready(self) -> EngineReady:
        """Wait for the next ``EngineReady`` (or return the current one)."""
        while self._ready is None:
            await self._became_ready.wait()
        return self._ready

    def require_ready(self) -> EngineReady:
        """What the living engine can take.

        Raises:
            RequestFailure: no engine is ready.
        """
        if self._ready is None:
            raise _engine_lost("the engine is not ready")
        return self._ready

    def attach(self, channel: TransportChannel) -> None:
        """A new engine process was started behind ``channel``; it is not ready yet."""
        self._channel = channel
        self._forget_engine()

    def receive(self, message: FromEngine) -> None:
        """Take one message from the engine."""
        match message:
            case StepOutput():
                streams = self._streams
                for output in message.outputs:
                    stream = streams.get(output.request_id)
                    if stream is not None:
                        if output.finish_reason is not None:
                            del streams[output.request_id]
                        stream.deliver(output)
            case EngineStats():
                self._stats = message
            case RequestFailed():
                failed = self._streams.pop(message.request_id, None)
                if failed is not None:
                    failed.end(RequestFailure.of_code(message.code, message.message))
            case EngineReady():
                self._ready = self._limits = message
                self._became_ready.set()
            case EngineFailed():
                # A permanent failure ends the server, which then says why.
                if not message.permanent:
                    _log.error("engine failed", reason=message.message)

    def engine_lost(self, reason: str) -> None:
        """The engine is gone: tell everybody who waits."""
        self._forget_engine()
        self._channel = None
        self.fail_all(_engine_lost(f"the engine was lost: {reason}"))

    def fail_all(self, failure: RequestFailure) -> None:
        """End every waiting request with ``failure``."""
        for stream in set(self._streams.values()):
            stream.end(failure)

    def new_request_id(self) -> int:
        """An id that no other request of this client has."""
        return next(self._ids)

    def submit(self, submits: Sequence[Submit]) -> ReplyStream:
        """Send the sequences of one HTTP request.

        Raises:
            RequestFailure: no engine is ready.
        """
        self.require_ready()
        stream = ReplyStream(self, [submit.request_id for submit in submits])
        for submit in submits:
            self._streams[submit.request_id] = stream
            if not self._send(submit):
                stream.close()
                raise _engine_lost("the engine does not answer")
        return stream

    def abort(self, request_ids: Sequence[int]) -> None:
        """Tell the engine to forget these sequences."""
        known = [key for key in request_ids if self._streams.pop(key, None) is not None]
        if known:
            self._send(Abort(known))

    def _send(self, message: ToEngine) -> bool:
        """Whether there was an engine to send to."""
        if self._channel is None:
            return False
        try:
            self._channel.send(message)
        except zmq.ZMQError:
            # Its process is dead and the supervisor is about to say so.
            return False
        return True

    def _forget_engine(self) -> None:
        self._ready = None
        self._stats = None
        self._became_ready.clear()


def _engine_lost(message: str) -> RequestFailure:
    return RequestFailure.of_code(
        ErrorCode.ENGINE_LOST, message, retry_after=_NOT_READY_RETRY_SECONDS
    )
