"""One HTTP/1.1 connection that sends a request and takes the times of the streamed answer.

httpx and aiohttp spend more on an event than a decode step gives a single core for thousands of
streams: here a parser in C (httptools) calls straight into the outcome.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec

from headrace.benchmark.serving.events import DONE, decode_event
from headrace.benchmark.serving.outcome import Outcome

_LONGEST_ERROR = 2000

WhenDone = Callable[["Connection", Outcome], None]


class Connection(asyncio.Protocol):
    """Carries one request at a time.

    Args:
        when_done: Called when the answer has ended or failed; ``reusable`` says whether the
            connection can carry another.
    """

    def __init__(self, when_done: WhenDone) -> None:
        self._when_done = when_done
        self._outcome: Outcome | None = None
        self._carried = 0
        self.reusable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)
        self.reusable = True

    def send(self, request: bytes, outcome: Outcome) -> None:
        """Send a request; ``outcome`` takes what comes."""
        self._parser = httptools.HttpResponseParser(self)
        self._outcome = outcome
        self._line = b""
        self._refusal = b""
        self._status = 0
        self._ended = False
        self._carried += 1
        self.reusable = False
        self._transport.write(request)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def fail(self, kind: str, message: str = "") -> None:
        """End the request in flight, and the connection with it."""
        self._finish(kind, message)
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Feed the parser."""
        if self._outcome is None:
            self._transport.abort()
            return
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail("not http", str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer without a length ends here; any other is broken off."""
        self.reusable = False
        outcome = self._outcome
        if outcome is None:
            return
        if self._status == 200 and self._ended:
            self._finish("")
        elif self._status not in (0, 200):
            self._finish(f"http {self._status}", _message(self._refusal))
        elif not self._status and self._carried > 1:
            # The server closed an idle connection as the request left: no answer to measure.
            self._finish("stale")
        else:
            self._finish("connection lost", str(exc or ""))

    # Called by the parser.

    def on_headers_complete(self) -> None:
        """Note the status."""
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Take in whole lines; a half one waits."""
        outcome = self._outcome
        if outcome is None:
            return
        if self._status != 200:
            self._refusal = (self._refusal + body)[:_LONGEST_ERROR]
            return
        *lines, self._line = (self._line + body).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), outcome)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._outcome is None:
            return
        self.reusable = self._parser.should_keep_alive()
        if self._status != 200:
            self._finish(f"http {self._status}", _message(self._refusal))
        else:
            self._finish("")

    def _take(self, data: bytes, outcome: Outcome) -> None:
        if data == DONE:
            self._ended = True
            return
        try:
            event = decode_event(data)
        except msgspec.MsgspecError:
            outcome.error, outcome.message = "not an event", data[:200].decode(errors="replace")
            return
        if event.error is not None:
            outcome.error, outcome.message = "error event", _text(event.error)
            return
        if event.has_output:
            outcome.take_output(self._now)
        if event.is_last:
            self._ended = True
        if event.usage is not None:
            outcome.output_tokens = event.usage.completion_tokens or outcome.output_tokens
            outcome.prompt_tokens = event.usage.prompt_tokens or outcome.prompt_tokens
        if event.details is not None:
            outcome.output_tokens = event.details.generated_tokens or outcome.output_tokens
            outcome.prompt_tokens = event.details.input_length or outcome.prompt_tokens

    def _finish(self, error: str, message: str = "") -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is None:
            return
        if error:
            outcome.error, outcome.message = error, message
        elif not outcome.error and not outcome.events:
            outcome.error = "no output"
        elif not outcome.error and not self._ended:
            outcome.error = "cut off"
        outcome.output_tokens = outcome.output_tokens or outcome.events
        self._when_done(self, outcome)


def _message(body: bytes) -> str:
    """What an error body says."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
    error = document.get("error", document) if isinstance(document, dict) else document
    return _text(error)


def _text(error: Any) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]
