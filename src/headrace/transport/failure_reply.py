"""A failure as a complete HTTP response."""

from __future__ import annotations

from starlette.types import Scope, Send

from headrace.transport.errors import RequestFailure, speaks_openai
from headrace.transport.request_context import context_of


async def send_failure(
    scope: Scope, send: Send, failure: RequestFailure, *, more_body: bool = False
) -> None:
    """Tell the client of ``failure`` in the dialect of its route.

    Args:
        more_body: Leave the response open, though it is complete for the client.
    """
    context_of(scope).failure = failure.error_type
    body = failure.body(speaks_openai(scope["path"]))
    headers = [*failure.headers(), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
