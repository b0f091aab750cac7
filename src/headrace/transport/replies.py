"""Generations as HTTP responses: whole, or one server-sent event for each token."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.link.errors import ErrorCode
from headrace.transport.engine_client import ClientGone
from headrace.transport.errors import RequestFailure, speaks_openai
from headrace.transport.failure_reply import send_failure
from headrace.transport.generation import Generation
from headrace.transport.request_context import RequestContext, context_of
from headrace.transport.sequence import Piece

Headers = list[tuple[bytes, bytes]]

_DISCONNECTED = "client_disconnected"


class EventWriter(Protocol):
    """Writes the events of one stream in some dialect."""

    def events(self, pieces: list[Piece]) -> bytes:
        """One event for each piece."""

    def tail(self) -> bytes:
        """What follows the last piece's event."""


class _GenerationResponse(Response):
    """A response that watches for the client's departure and frees the generation at its end."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        context = context_of(scope)
        async with _watched(self.generation, receive):
            try:
                # In a task of its own: each token would otherwise resume every coroutine of every
                # layer of middleware on its way here.
                await asyncio.create_task(self.answer(scope, send, context))
            except ClientGone:
                context.failure = _DISCONNECTED

    async def answer(self, scope: Scope, send: Send, context: RequestContext) -> None:
        """Send the response."""
        raise NotImplementedError


class WholeReply(_GenerationResponse):
    """One JSON document when every sequence has ended.

    Args:
        build: Makes body and headers; called once all sequences have ended.
        keep_pieces: Called with all pieces as they arrive.
    """

    def __init__(
        self,
        generation: Generation,
        build: Callable[[], tuple[bytes, Headers]],
        keep_pieces: Callable[[list[Piece]], None] | None = None,
    ) -> None:
        super().__init__(generation)
        self._build = build
        self._keep_pieces = keep_pieces

    async def answer(self, scope: Scope, send: Send, context: RequestContext) -> None:
        """Wait for the end and send the document."""
        generation = self.generation
        try:
            while not generation.finished:
                pieces = await generation.receive()
                if self._keep_pieces is not None:
                    self._keep_pieces(pieces)
            generation.close()
            body, headers = self._build()
        except RequestFailure as failure:
            await send_failure(scope, send, failure)
            return
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class StreamReply(_GenerationResponse):
    """Server-sent events, which begin when the first token or the first error has come."""

    def __init__(self, generation: Generation, writer: EventWriter, extra_headers: Headers) -> None:
        super().__init__(generation)
        self._writer = writer
        self._extra_headers = extra_headers

    async def answer(self, scope: Scope, send: Send, context: RequestContext) -> None:
        """Send events until every sequence has ended or something failed."""
        generation, writer = self.generation, self._writer
        try:
            pieces = await generation.receive()
        except RequestFailure as failure:
            await send_failure(scope, send, failure)
            return
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                    *self._extra_headers,
                ],
            }
        )
        send = context.direct_send
        try:
            while not generation.finished:
                await send(
                    {
                        "type": "http.response.body",
                        "body": writer.events(pieces),
                        "more_body": True,
                    }
                )
                pieces = await generation.receive()
            body = writer.events(pieces) + writer.tail()
        except RequestFailure as failure:
            context.failure = failure.error_type
            document = failure.body(speaks_openai(scope["path"]))
            body = b"data: " + document + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": False})


@contextlib.asynccontextmanager
async def _watched(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Abort the generation the moment its client is gone; close it at the end."""
    watcher = asyncio.create_task(_await_departure(generation, receive))
    try:
        yield
    finally:
        watcher.cancel()
        generation.close()


async def _await_departure(generation: Generation, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.client_gone()


def incomplete(reason: str) -> RequestFailure:
    """The engine's answer does not hold what was asked for."""
    return RequestFailure.of_code(ErrorCode.INCOMPLETE_GENERATION, reason)
