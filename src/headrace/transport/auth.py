"""API keys: a bearer token on every route but the probes."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.transport.errors import RequestFailure
from headrace.transport.failure_reply import send_failure
from headrace.transport.request_context import header

OPEN_PATHS = frozenset({"/health", "/ready", "/ping"})


class ApiKeyMiddleware:
    """Refuses requests without one of the keys.

    Digests of equal length are compared, all of them, so that the time taken tells nothing.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request if it bears a key."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._admits(scope):
            await self._app(scope, receive, send)
            return
        failure = RequestFailure(
            "a valid API key is required: `Authorization: Bearer KEY`",
            status=401,
            error_type="unauthorized",
        )
        await send_failure(scope, send, failure)

    def _admits(self, scope: Scope) -> bool:
        scheme, _, key = (header(scope, b"authorization") or b"").partition(b" ")
        digest = sha256(key.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)
