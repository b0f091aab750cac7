"""The events of an OpenAI stream: what never changes is encoded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from headrace.transport.generation import Generation
from headrace.transport.openai.generation import usage
from headrace.transport.sequence import GeneratedSequence, Piece

_DONE = b"data: [DONE]\n\n"


class ChunkWriter:
    """Writes a stream's chunks around what a dialect says of each piece.

    Args:
        fields: ``envelope`` of the stream.
        choice: The one entry of a chunk's ``choices``.
        with_usage: Send a last chunk with the usage (and a null usage in all others).
        openings: Choices that come before any token, such as an echoed prompt.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        generation: Generation,
        choice: Callable[[Piece], Any],
        *,
        with_usage: bool,
        openings: Callable[[GeneratedSequence], Any] | None = None,
    ) -> None:
        self._encode = msgspec.json.Encoder().encode
        fixed = self._encode(fields)[:-1]
        self._before = b"data: " + fixed + b',"choices":['
        self._after = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"
        self._generation = generation
        self._choice = choice
        self._with_usage = with_usage
        self._openings = openings
        self._opened: set[int] = set()

    def events(self, pieces: list[Piece]) -> bytes:
        """One event for each piece."""
        encode, choice = self._encode, self._choice
        before, after = self._before, self._after
        if self._openings is None:
            return b"".join([before + encode(choice(piece)) + after for piece in pieces])
        events: list[bytes] = []
        for piece in pieces:
            sequence = piece.sequence
            if sequence.index not in self._opened:
                self._opened.add(sequence.index)
                events.append(before + encode(self._openings(sequence)) + after)
            events.append(before + encode(choice(piece)) + after)
        return b"".join(events)

    def tail(self) -> bytes:
        """The usage where asked for, then ``[DONE]``."""
        if not self._with_usage:
            return _DONE
        figures = self._encode(usage(self._generation))
        return self._before + b'],"usage":' + figures + b"}\n\n" + _DONE
