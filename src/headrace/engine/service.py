"""The loop of the engine process: messages in, steps, messages out."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from headrace.engine.core import Engine
from headrace.link.channel import EngineChannel
from headrace.link.errors import HeadraceError
from headrace.link.messages import Abort, Drain, RequestFailed, StepOutput, Submit, ToEngine

_log = structlog.get_logger("headrace.engine")

_STATS_SECONDS = 0.2
_IDLE_POLL_SECONDS = 0.5


class EngineService:
    """Serves one transport process until it asks for a drain.

    A request that cannot be taken is answered with ``RequestFailed``; the others go on.
    """

    def __init__(
        self,
        engine: Engine,
        channel: EngineChannel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._channel = channel
        self._clock = clock
        self._draining = False
        self._next_stats = 0.0

    def run(self) -> None:
        """Serve; returns when drained."""
        engine, channel = self._engine, self._channel
        was_busy = True
        while not (self._draining and not engine.has_work):
            if not engine.has_work and was_busy:
                # An idle engine has time to prove that nothing leaked.
                engine.check_integrity()
                self._send_stats()
            was_busy = engine.has_work
            for message in channel.receive(0.0 if was_busy else _IDLE_POLL_SECONDS):
                self._handle(message)
            if engine.has_work:
                outputs, failures = engine.step()
                if outputs:
                    channel.send(StepOutput(outputs))
                for failure in failures:
                    channel.send(failure)
            if self._clock() >= self._next_stats:
                self._send_stats()

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                try:
                    self._engine.submit(message)
                except HeadraceError as error:
                    self._channel.send(RequestFailed(message.request_id, error.code, str(error)))
            case Abort():
                self._engine.abort(message.request_ids)
            case Drain():
                _log.info("draining")
                self._draining = True

    def _send_stats(self) -> None:
        self._channel.send(self._engine.stats())
        self._next_stats = self._clock() + _STATS_SECONDS
