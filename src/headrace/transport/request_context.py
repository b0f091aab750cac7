"""What is known of an HTTP request while it is served, and the log line at its end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import cast

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.transport.identifiers import unique_name
from headrace.transport.request_model import invalid

_log = structlog.get_logger("headrace.request")

_SCOPE_KEY = "headrace.request"
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
# Probes come every few seconds and would drown the rest.
_UNLOGGED = frozenset({"/health", "/ready", "/ping", "/metrics"})


@dataclass(slots=True)
class RequestContext:
    """One HTTP request.

    Attributes:
        request_id: The client's own ``x-request-id`` where it is printable, else a fresh one.
        arrived: Monotonic seconds.
        timeout: Seconds until the deadline; ``None``: no deadline.
        direct_send: The server's own ``send``, for the body of a stream that has begun: each
            layer of middleware would cost every token another coroutine.
        failure: Kind of the error that the client was told.
        adapter: Name of the adapter that computed it.
    """

    request_id: str
    arrived: float
    direct_send: Send
    timeout: float | None = None
    status: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    failure: str | None = None
    adapter: str | None = None


def context_of(scope: Scope) -> RequestContext:
    """The context that ``RequestContextMiddleware`` has put into ``scope``."""
    return cast(RequestContext, scope[_SCOPE_KEY])


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header, or ``None``."""
    return next((value for key, value in scope["headers"] if key == name), None)


def apply_timeout(scope: Scope, longest: float | None) -> None:
    """Set the deadline from the server's setting and the header ``x-request-timeout``.

    Raises:
        RequestFailure: the header is no positive number of seconds.
    """
    context = context_of(scope)
    context.timeout = longest
    asked = header(scope, b"x-request-timeout")
    if asked is None:
        return
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or seconds <= 0:
        shown = asked[:40].decode("latin-1")
        raise invalid(
            f"`x-request-timeout` must be a positive number of seconds, got {shown!r}",
            "x-request-timeout",
        )
    context.timeout = seconds if longest is None else min(seconds, longest)


class RequestContextMiddleware:
    """Gives each request its id and context; returns the id; logs the end.

    Args:
        on_end: Called with the scope and the context of each request that is over.
    """

    def __init__(self, app: ASGIApp, on_end: Callable[[Scope, RequestContext], None]) -> None:
        self._app = app
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            request_id = given.decode("ascii")
        else:
            request_id = unique_name()
        context = RequestContext(request_id, time.monotonic(), send)
        scope[_SCOPE_KEY] = context

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode("ascii")),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._on_end(scope, context)
            if scope["path"] not in _UNLOGGED:
                _log.info(
                    "request",
                    request_id=request_id,
                    method=scope["method"],
                    path=scope["path"],
                    status=context.status,
                    seconds=round(time.monotonic() - context.arrived, 4),
                    prompt_tokens=context.prompt_tokens,
                    generated_tokens=context.generated_tokens,
                    **({"adapter": context.adapter} if context.adapter else {}),
                    **({"error": context.failure} if context.failure else {}),
                )
