"""What a server-sent event says, in OpenAI's dialects and in TGI's."""

from __future__ import annotations

from typing import Any

import msgspec


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Token(msgspec.Struct):
    id: int


class _Details(msgspec.Struct):
    generated_tokens: int | None = None
    input_length: int | None = None


class Event(msgspec.Struct):
    """One event; absent fields have their defaults."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: Any = None

    @property
    def has_output(self) -> bool:
        """Whether it brings a token, be it one whose text is still held back."""
        if self.token is not None:
            return True
        for choice in self.choices:
            text, opening = choice.text, False
            if choice.delta is not None:
                delta = choice.delta
                opening = delta.role is not None
                text = delta.content if delta.content is not None else delta.reasoning_content
            if text or (text is not None and not opening and choice.finish_reason is None):
                return True
        return False

    @property
    def is_last(self) -> bool:
        """Whether the generation has ended with it."""
        return self.generated_text is not None or any(
            choice.finish_reason is not None for choice in self.choices
        )


DONE = b"[DONE]"
decode_event = msgspec.json.Decoder(Event).decode
"""Raises ``msgspec.DecodeError`` for what is not an event."""
