"""``Load``: sends requests when they are due, whatever the server does, and keeps the outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.benchmark.serving.connection import Connection
from headrace.benchmark.serving.outcome import Outcome
from headrace.benchmark.serving.target import Target
from headrace.benchmark.serving.workload import Workload, encode


@dataclass(frozen=True, kw_only=True)
class LoadLimits:
    """When the load ends and what it never exceeds.

    Attributes:
        requests: Most requests that are sent; ``None``: as ``seconds`` says.
        seconds: No request is sent after so long; ``None``: as ``requests`` says.
        max_concurrency: Requests in flight; a further one waits in the client, unsent.
        timeout: Seconds until a request counts as failed.
    """

    requests: int | None
    seconds: float | None
    max_concurrency: int | None
    timeout: float


_BURST = 64


class Load:
    """One load on one server.

    Attributes:
        outcomes: Of the requests that have ended, in the order of their ends.
        in_flight: Requests sent and not ended.
        most_in_flight: The most there ever were.
        begun, ended: Of the whole load, in seconds of ``time.perf_counter``.
        processor_seconds: That this process spent on it.
    """

    def __init__(
        self, target: Target, workload: Workload, limits: LoadLimits, *, ignore_eos: bool
    ) -> None:
        self._target = target
        self._workload = workload
        self._limits = limits
        self._ignore_eos = ignore_eos
        self._idle: list[Connection] = []
        self._live: dict[int, tuple[Outcome, asyncio.TimerHandle, bytes]] = {}
        self._connecting: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self.outcomes: list[Outcome] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.begun = self.ended = 0.0
        self.processor_seconds = 0.0

    @property
    def paced(self) -> bool:
        """Whether requests were due at times of their own, not all at once."""
        return any(outcome.due > self.begun for outcome in self.outcomes)

    @property
    def events(self) -> int:
        """Events with output so far."""
        live = sum(outcome.events for outcome, _, _ in self._live.values())
        return live + sum(outcome.events for outcome in self.outcomes)

    async def run(self, due_times: Iterator[float]) -> None:
        """Send everything and wait for every answer."""
        self.begun = time.perf_counter()
        processor = time.process_time()
        try:
            await self._send_all(due_times)
            while self.in_flight:
                await self._change()
        finally:
            self.ended = time.perf_counter()
            self.processor_seconds = time.process_time() - processor
            self.close()

    def close(self) -> None:
        """Drop every connection."""
        for task in self._connecting:
            task.cancel()
        for connection in self._idle:
            connection.abort()
        self._idle.clear()

    async def _send_all(self, due_times: Iterator[float]) -> None:
        limits = self._limits
        for sent, due in enumerate(due_times):
            if sent == limits.requests or (limits.seconds is not None and due >= limits.seconds):
                return
            # Made ahead of its time: what the workload costs delays nothing.
            request = encode(self._target, self._workload.next(), ignore_eos=self._ignore_eos)
            wait = self.begun + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            while limits.max_concurrency is not None and self.in_flight >= limits.max_concurrency:
                await self._change()
            elapsed = time.perf_counter() - self.begun
            if limits.seconds is not None and elapsed >= limits.seconds:
                return
            self._send(request, Outcome(due=self.begun + due))
            if sent % _BURST == _BURST - 1:
                # A burst without a pause would leave the answers unread.
                await asyncio.sleep(0)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _send(self, request: bytes, outcome: Outcome) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        outcome.sent = time.perf_counter()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                self._carry(connection, request, outcome)
                return
        self._connect(request, outcome)

    def _connect(self, request: bytes, outcome: Outcome) -> None:
        task = asyncio.get_running_loop().create_task(self._connect_and_carry(request, outcome))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_and_carry(self, request: bytes, outcome: Outcome) -> None:
        loop, target = asyncio.get_running_loop(), self._target
        try:
            async with asyncio.timeout(self._limits.timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._done), target.host, target.port, ssl=target.tls
                )
        except TimeoutError:
            self._end(outcome, "timeout", "no connection")
        except OSError as error:
            self._end(outcome, "no connection", error.strerror or str(error))
        else:
            self._carry(connection, request, outcome)

    def _carry(self, connection: Connection, request: bytes, outcome: Outcome) -> None:
        timer = asyncio.get_running_loop().call_later(
            self._limits.timeout, connection.fail, "timeout"
        )
        self._live[id(outcome)] = outcome, timer, request
        connection.send(request, outcome)

    def _done(self, connection: Connection, outcome: Outcome) -> None:
        _, timer, request = self._live.pop(id(outcome))
        timer.cancel()
        if outcome.error == "stale":
            outcome.error = ""
            self._connect(request, outcome)
            return
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.abort()
        self._end(outcome, outcome.error, outcome.message)

    def _end(self, outcome: Outcome, error: str, message: str) -> None:
        outcome.error, outcome.message = error, message
        self.in_flight -= 1
        self.outcomes.append(outcome)
        self._changed.set()
