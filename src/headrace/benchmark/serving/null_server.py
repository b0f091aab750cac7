"""A server without a model: every stream gets an event at a fixed pace, in OpenAI's dialect.

It is what a load generator is measured against, its own work being as little as can be.

    python -m headrace.benchmark.serving.null_server --pace 5
"""

from __future__ import annotations

import argparse
import asyncio
import re
from typing import cast

import uvloop

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:new_)?tokens": ?(\d+)')
_MODELS = b'{"object":"list","data":[{"id":"null","object":"model","owned_by":"null"}]}'
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_BACKLOG = 8192


def _chunk(event: bytes) -> bytes:
    return f"{len(event):x}\r\n".encode() + event + b"\r\n"


_EVENT = _chunk(b'data: {"id":"n","choices":[{"index":0,"text":" the","finish_reason":null}]}\n\n')
_LAST = (
    _chunk(b'data: {"id":"n","choices":[{"index":0,"text":" end","finish_reason":"length"}]}\n\n')
    + _chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


class NullServer:
    """Streams that all beat at one pace, each in a phase of its own.

    Args:
        pace: Events a second of each stream.
        phases: Groups of streams that get their events at one moment.
    """

    def __init__(self, pace: float, phases: int = 20) -> None:
        self._seconds = 1 / pace / phases
        self._phases: list[dict[_Stream, int]] = [{} for _ in range(phases)]
        self._begun = 0

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listen; beats for as long as the loop runs."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Stream(self), host, port, backlog=_BACKLOG)
        self._beat_task = loop.create_task(self._beat())
        return server

    def begin(self, stream: _Stream, tokens: int) -> None:
        """Send ``tokens`` events from now on."""
        self._phases[self._begun % len(self._phases)][stream] = tokens
        self._begun += 1

    def forget(self, stream: _Stream) -> None:
        """The client has gone."""
        for phase in self._phases:
            phase.pop(stream, None)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            for phase in self._phases:
                due = max(due + self._seconds, loop.time())
                await asyncio.sleep(due - loop.time())
                for stream, left in list(phase.items()):
                    if left > 1:
                        phase[stream] = left - 1
                        stream.transport.write(_EVENT)
                    else:
                        del phase[stream]
                        stream.transport.write(_LAST)


class _Stream(asyncio.Protocol):
    def __init__(self, server: NullServer) -> None:
        self._server = server
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self._request += data
        head, found, body = self._request.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(body) < int(length[1])):
            return
        self._request = b""
        if head.startswith(b"GET /v1/models"):
            self._reply(b"200 OK", _MODELS)
        elif head.startswith(b"POST"):
            tokens = _TOKENS.search(body)
            self.transport.write(_HEAD)
            self._server.begin(self, int(tokens[1]) if tokens else 16)
        else:
            self._reply(b"404 Not Found", b"{}")

    def _reply(self, status: bytes, body: bytes) -> None:
        length = str(len(body)).encode()
        self.transport.write(
            b"HTTP/1.1 " + status + b"\r\ncontent-length: " + length + b"\r\n\r\n" + body
        )


async def _serve(pace: float, port: int) -> None:
    server = await NullServer(pace).serve("127.0.0.1", port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Print the port, then serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pace", type=float, default=5.0, help="events a second of each stream")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    uvloop.run(_serve(arguments.pace, arguments.port))


if __name__ == "__main__":
    main()
