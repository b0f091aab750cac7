"""The face of whatever answers in a chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import msgspec


class Message(msgspec.Struct, frozen=True):
    """One turn: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class AnswerStyle:
    """How answers are generated.

    Attributes:
        max_tokens: Longest answer; ``None``: what fits.
        temperature: 0 takes the most likely token.
        seed: Repeats an answer; ``None``: a fresh one each time.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    seed: int | None = None


class Partner(Protocol):
    """Answers conversations, piece by piece."""

    @property
    def name(self) -> str:
        """The model's name, for people."""

    def answer(self, messages: list[Message], style: AnswerStyle) -> Iterator[str]:
        """The pieces of the answer to ``messages``; closing the iterator stops the model.

        Raises:
            HeadraceError: The conversation cannot be answered, or the model is lost.
        """

    def close(self) -> None:
        """Let go of the model."""
