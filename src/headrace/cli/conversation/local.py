"""A model in an engine of our own: the link's client runs in a thread beside the terminal."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import wait
from queue import SimpleQueue
from typing import Any, TypeVar

import msgspec

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.text_stream import TextStream
from headrace.cli.conversation.partner import AnswerStyle, Message
from headrace.engine.settings import EngineSettings
from headrace.engine.supervisor import Supervisor
from headrace.link.errors import ConfigurationError, HeadraceError
from headrace.link.messages import EngineReady, Submit
from headrace.link.sampling import MAX_SEED, SamplingParams
from headrace.transport.engine_client import EngineClient

_Result = TypeVar("_Result")
_END = None
_END_SECONDS = 5.0


class LocalPartner:
    """Starts an engine for ``checkpoint`` and waits until it is warm.

    Raises:
        ConfigurationError: the model has no chat template, or the engine cannot start.
    """

    def __init__(self, checkpoint: Checkpoint, settings: EngineSettings) -> None:
        self.name = checkpoint.model_id
        self._template = checkpoint.load_chat_template()
        if not self._template.exists:
            raise ConfigurationError(f"model `{self.name}` has no chat template")
        self._tokenizer = checkpoint.load_tokenizer()
        self._client = EngineClient()
        self._supervisor = Supervisor(settings, self._client)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._engine = asyncio.run_coroutine_threadsafe(self._supervisor.run(), self._loop)
        try:
            self._limits = self._call(self._wait_ready())
        except BaseException:
            self.close()
            raise

    def answer(self, messages: list[Message], style: AnswerStyle) -> Iterator[str]:
        """Stream the answer; closing the iterator aborts the request in the engine."""
        turns = [msgspec.to_builtins(message) for message in messages]
        text = self._template.render(turns, add_generation_prompt=True)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        pieces: SimpleQueue[str | HeadraceError | None] = SimpleQueue()
        request = self._submit(ids, style)
        task = asyncio.run_coroutine_threadsafe(self._receive(request, pieces), self._loop)
        try:
            while (piece := pieces.get()) is not _END:
                if isinstance(piece, HeadraceError):
                    raise piece
                yield piece
        finally:
            task.cancel()

    def close(self) -> None:
        """End the engine and the thread."""
        try:
            # No answer is under way: there is nothing to finish.
            self._call(self._supervisor.stop(grace_seconds=0.0))
            wait([self._engine], timeout=_END_SECONDS)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _wait_ready(self) -> EngineReady:
        ready = asyncio.ensure_future(self._client.wait_ready())
        engine = asyncio.wrap_future(self._engine)
        either: set[asyncio.Future[Any]] = {ready, engine}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await engine
            raise HeadraceError("the engine ended before it was ready")
        return await ready

    def _submit(self, ids: list[int], style: AnswerStyle) -> Submit:
        room = self._limits.max_total_tokens - len(ids)
        if room < 1 or len(ids) > self._limits.max_input_tokens:
            raise HeadraceError(
                f"the conversation has {len(ids)} tokens and the model takes "
                f"{self._limits.max_input_tokens}: /reset starts afresh"
            )
        sampling = SamplingParams(
            max_new_tokens=min(style.max_tokens or room, room),
            do_sample=style.temperature > 0,
            temperature=style.temperature or 1.0,
            seed=secrets.randbelow(MAX_SEED) if style.seed is None else style.seed,
        )
        return Submit(request_id=self._client.new_request_id(), token_ids=ids, sampling=sampling)

    async def _receive(
        self, request: Submit, pieces: SimpleQueue[str | HeadraceError | None]
    ) -> None:
        text = TextStream(self._tokenizer)
        try:
            reply = self._client.submit([request])
        except HeadraceError as error:
            pieces.put(error)
            return
        try:
            finished = False
            while not finished:
                for output in await reply.receive():
                    pieces.put(text.push(output.token_ids).text)
                    finished = output.finish_reason is not None
            pieces.put(text.finish().text)
            pieces.put(_END)
        except HeadraceError as error:
            pieces.put(error)
        finally:
            reply.close()
