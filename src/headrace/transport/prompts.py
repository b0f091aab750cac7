"""From what a client wrote to token ids, in threads: nothing heavy runs in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from headrace.checkpoint.tokenizer import TokenSpan
from headrace.transport.served_model import ServedModel

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as text; ``framed`` when the tokenizer adds its special tokens."""

    text: str
    framed: bool = True


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that the client tokenized itself."""

    ids: list[int]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, to be rendered by the model's template."""

    messages: list[dict[str, Any]]


Prompt = Text | TokenIds | Chat


class PromptEncoder:
    """Tokenizes and renders in ``workers`` threads; the tokenizer releases the GIL."""

    def __init__(self, model: ServedModel, workers: int) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="validation")

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of ``prompt``.

        Raises:
            HeadraceError: the template refuses the messages, or there is none.
        """
        if isinstance(prompt, TokenIds):
            return prompt.ids
        return await self._run(lambda: self._encode(prompt))

    async def spans(self, text: str, add_special_tokens: bool) -> list[TokenSpan]:
        """The tokens of ``text`` and the characters that each covers."""
        tokenizer = self._model.tokenizer
        return await self._run(lambda: tokenizer.encode_with_offsets(text, add_special_tokens))

    async def render(self, chat: Chat) -> str:
        """The text that the template makes of ``chat``."""
        return await self._run(lambda: self._render(chat))

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, prompt: Text | Chat) -> list[int]:
        if isinstance(prompt, Chat):
            # The template writes the special tokens itself.
            return self._model.tokenizer.encode(self._render(prompt), add_special_tokens=False)
        return self._model.tokenizer.encode(prompt.text, add_special_tokens=prompt.framed)

    def _render(self, chat: Chat) -> str:
        return self._model.chat_template.render(chat.messages)

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)
