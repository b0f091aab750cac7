"""The events of ``/generate_stream``: one for each token, encoded without detours."""

from __future__ import annotations

import msgspec

from headrace.transport.generation import Generation
from headrace.transport.sequence import Piece
from headrace.transport.service import Service


class _Token(msgspec.Struct):
    id: int
    text: str
    logprob: float | None
    special: bool


class _Details(msgspec.Struct):
    finish_reason: str
    generated_tokens: int
    seed: int | None
    input_length: int


class _Event(msgspec.Struct):
    index: int
    token: _Token
    generated_text: str | None
    details: _Details | None


class _EventWithTop(msgspec.Struct):
    index: int
    token: _Token
    top_tokens: list[_Token]
    generated_text: str | None
    details: _Details | None


class GenerateEvents:
    """Writes a stream of one sequence.

    Args:
        full_text_prefix: What to put before the final ``generated_text``.
        details: Whether the last event has details.
    """

    def __init__(
        self, service: Service, generation: Generation, full_text_prefix: str, details: bool
    ) -> None:
        self._tokenizer = service.model.tokenizer
        self._generation = generation
        self._prefix = full_text_prefix
        self._details = details
        self._encode = msgspec.json.Encoder().encode
        self._index = 0

    def events(self, pieces: list[Piece]) -> bytes:
        """One event for each piece."""
        return b"".join([b"data:" + self._event(piece) + b"\n\n" for piece in pieces])

    def tail(self) -> bytes:
        """TGI's stream has no closing event."""
        return b""

    def _event(self, piece: Piece) -> bytes:
        self._index += 1
        token_id = piece.token_id
        special = self._tokenizer.is_special(token_id)
        token = _Token(token_id, piece.token_text, piece.logprob, special)
        text, details = (None, None) if piece.finish_reason is None else self._end(piece)
        if piece.top_tokens:
            top = [
                _Token(
                    top.token_id,
                    self._tokenizer.token_text(top.token_id),
                    top.logprob,
                    self._tokenizer.is_special(top.token_id),
                )
                for top in piece.top_tokens
            ]
            return self._encode(_EventWithTop(self._index, token, top, text, details))
        return self._encode(_Event(self._index, token, text, details))

    def _end(self, piece: Piece) -> tuple[str, _Details | None]:
        sequence = self._generation.sequences[0]
        text = self._prefix + sequence.text_with_stop
        if not self._details or piece.finish_reason is None:
            return text, None
        seed = sequence.seed if self._generation.sampling.do_sample else None
        return text, _Details(piece.finish_reason, sequence.tokens, seed, len(sequence.prompt_ids))
