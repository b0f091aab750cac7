"""Life and death of the engine process, seen from the transport process. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import structlog

from headrace.engine.restart_policy import RestartPolicy
from headrace.engine.settings import EngineSettings
from headrace.link.channel import TransportChannel
from headrace.link.errors import ConfigurationError, HeadraceError
from headrace.link.messages import Drain, EngineFailed, EngineReady, FromEngine

_log = structlog.get_logger("headrace.supervisor")

_STANDARD_ERROR = 2

ENGINE_COMMAND = (sys.executable, "-m", "headrace.engine")


class EngineUser(Protocol):
    """Whoever sends requests to the engine: it is told of each incarnation and of its end."""

    def attach(self, channel: TransportChannel) -> None:
        """A new engine process was started behind ``channel``; it is not ready yet."""

    def receive(self, message: FromEngine) -> None:
        """One message from the engine."""

    def engine_lost(self, reason: str) -> None:
        """The engine is gone: every waiting request must be told now."""


class EngineGaveUp(HeadraceError):
    """The engine died more often than the restart policy allows."""


class Supervisor:
    """Starts the engine process, watches it, and starts it again under ``RestartPolicy``.

    Args:
        settings: Handed to the engine on its standard input.
        user: Receives the engine's messages.
        policy: Back-off between restarts.
        heartbeat_seconds: A ready engine that is silent for longer is killed: it hangs.
        command: Program to start; it gets the channel's address as its one argument.
    """

    def __init__(
        self,
        settings: EngineSettings,
        user: EngineUser,
        policy: RestartPolicy | None = None,
        heartbeat_seconds: float = 120.0,
        command: Sequence[str] = ENGINE_COMMAND,
    ) -> None:
        self._settings = settings
        self._user = user
        self._policy = policy or RestartPolicy()
        self._heartbeat_seconds = heartbeat_seconds
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: TransportChannel | None = None
        self._stopping = False
        self._ready = False
        self._failure: EngineFailed | None = None
        self._last_heard = 0.0
        self._drained = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process id of the living engine, or ``None``."""
        alive = self._process is not None and self._process.returncode is None
        return self._process.pid if alive and self._process else None

    async def run(self) -> None:
        """Keep an engine alive until ``stop``.

        Raises:
            ConfigurationError: the engine says that its settings or its model cannot work.
            EngineGaveUp: it died more often than the policy allows.
        """
        try:
            while not self._stopping:
                await self._live_once()
                if self._stopping:
                    return
                reason = self._why_it_ended()
                self._user.engine_lost(reason)
                if self._failure and self._failure.permanent:
                    raise ConfigurationError(self._failure.message)
                delay = self._policy.next_delay(time.monotonic())
                if delay is None:
                    raise EngineGaveUp(
                        f"the engine died more than {self._policy.max_restarts} times within "
                        f"{self._policy.window_seconds / 60:g} minutes; last: {reason}"
                    )
                _log.error("engine lost, restarting", reason=reason, delay_seconds=delay)
                await asyncio.sleep(delay)
        finally:
            self._kill()
            if self._channel is not None:
                self._channel.close()
            self._drained.set()

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Ask the engine to finish what runs and exit; kill it after ``grace_seconds``."""
        self._stopping = True
        if self._channel is not None and self.pid is not None:
            self._channel.send(Drain())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), grace_seconds)
        self._kill()

    async def _live_once(self) -> None:
        """Start one engine process and wait for its end."""
        if self._channel is not None:
            self._channel.close()
        self._ready, self._failure = False, None
        self._channel = channel = TransportChannel(self._receive, self._on_garbage)
        channel.attach(asyncio.get_running_loop())
        # In a session of its own: a Ctrl-C in the terminal must reach this process only, which
        # then drains the engine.
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            channel.address,
            stdin=asyncio.subprocess.PIPE,
            # What an engine prints is its log: standard output is the command's own.
            stdout=_STANDARD_ERROR,
            start_new_session=True,
        )
        self._user.attach(channel)
        # The pipe stays open: its end tells the engine that this process is gone.
        assert process.stdin is not None  # for the type checker: PIPE was asked for
        # An engine may be dead before it reads a word: uvloop then raises RuntimeError.
        with contextlib.suppress(ConnectionError, RuntimeError):
            process.stdin.write(msgspec.json.encode(self._settings) + b"\n")
            await process.stdin.drain()
        self._last_heard = time.monotonic()
        watch = asyncio.create_task(self._watch_heartbeat(process.pid))
        try:
            await process.wait()
        finally:
            watch.cancel()
        # What the engine said last may still lie in the socket.
        await asyncio.sleep(0)
        channel.drain()

    def _receive(self, message: FromEngine) -> None:
        self._last_heard = time.monotonic()
        if isinstance(message, EngineReady):
            self._ready = True
        elif isinstance(message, EngineFailed):
            self._failure = message
        self._user.receive(message)

    def _on_garbage(self, description: str) -> None:
        _log.error("engine sent garbage", description=description)
        self._kill()

    async def _watch_heartbeat(self, pid: int) -> None:
        while True:
            await asyncio.sleep(min(5.0, self._heartbeat_seconds / 4))
            silence = time.monotonic() - self._last_heard
            if self._ready and silence > self._heartbeat_seconds:
                _log.error("engine hangs, killing it", pid=pid, silent_seconds=round(silence))
                self._failure = EngineFailed(f"silent for {silence:.0f} s", permanent=False)
                self._kill()
                return

    def _why_it_ended(self) -> str:
        status = self._process.returncode if self._process else None
        if self._failure is not None:
            return self._failure.message
        if status is not None and status < 0:
            return f"the engine process was ended by {signal.Signals(-status).name}"
        return f"the engine process exited with status {status}"

    def _kill(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
