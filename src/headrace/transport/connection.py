"""uvicorn's HTTP/1.1 connection, with the bounds that it lacks."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.transport.errors import RequestFailure
from headrace.transport.settings import TransportSettings

_WRITE_SECONDS = 60.0


class BoundedConnection(HttpToolsProtocol):
    """Closes a connection whose headers are slow or long, or that does not read its reply.

    uvicorn's own timeout begins with the first reply: a connection that never sends anything
    would stay for ever.
    """

    settings: ClassVar[TransportSettings]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._in_headers = True
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect headers."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is expected any more."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what is not the end of the headers."""
        if self._in_headers:
            if self._header_timer is None:
                self._expect_headers()
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._header_bytes > self.settings.header_limit:
            self._refuse_headers()

    def on_headers_complete(self) -> None:
        """The request's headers are here."""
        self._in_headers = False
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request's body is here: what follows are the next request's headers."""
        super().on_message_complete()
        self._in_headers = True
        self._header_bytes = 0

    def pause_writing(self) -> None:
        """The client reads more slowly than the reply is made."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(_WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header_timeout, self._close_idle)

    def _close_idle(self) -> None:
        self._header_timer = None
        replying = self.cycle is not None and not self.cycle.response_complete
        if not replying and not self.transport.is_closing():
            self.transport.close()

    def _refuse_headers(self) -> None:
        if self.transport.is_closing():
            return
        failure = RequestFailure(
            f"the request's headers must be at most {self.settings.header_limit} bytes",
            status=431,
            error_type="headers_too_large",
            closes=True,
        )
        body = failure.body(openai=False)
        lines = [b"HTTP/1.1 431 Request Header Fields Too Large"]
        lines += [name + b": " + value for name, value in failure.headers()]
        lines += [b"content-length: %d" % len(body), b"", body]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def _cancel_timers(self) -> None:
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._header_timer = self._write_timer = None


def connection_class(settings: TransportSettings) -> type[BoundedConnection]:
    """The connection class of one server: uvicorn makes its connections itself."""
    return type("BoundedConnection", (BoundedConnection,), {"settings": settings})
