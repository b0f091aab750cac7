"""Reads a request's body within bounds of size and time."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.transport.errors import RequestFailure
from headrace.transport.failure_reply import send_failure
from headrace.transport.request_context import header

_LINGER_SECONDS = 2.0


class BodyLimitMiddleware:
    """Answers 413 to a body over the limit before it is read, 408 to one that does not come.

    After a 413 the connection lingers: what the client still sends is dropped for a moment, since
    a closed socket would answer with a reset, which may overtake the response.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self._app = app
        self._limit = limit
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body fits."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except RequestFailure as failure:
            await send_failure(scope, send, failure, more_body=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    await _drop(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if body is None:
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or ``None`` when the client is gone."""
        declared = header(scope, b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._limit:
            raise self._too_large(f"{int(declared)} bytes")
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._limit:
                        raise self._too_large("more")
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestFailure(
                f"the request body did not arrive within {self._timeout:g} seconds",
                status=408,
                error_type="request_timeout",
                closes=True,
            ) from None

    def _too_large(self, got: str) -> RequestFailure:
        return RequestFailure(
            f"the request body must be at most payload_limit ({self._limit} bytes), got {got}",
            status=413,
            error_type="payload_too_large",
            closes=True,
        )


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands out ``body`` and then what the server says."""
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


async def _drop(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
