"""``/v1/chat/completions``: requests, replies and chunks."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.errors import InvalidRequest
from headrace.link.messages import TokenLogprob
from headrace.transport.generation import Generation, GenerationSpec
from headrace.transport.openai.generation import (
    envelope,
    finish_reason,
    read_sampling,
    usage,
)
from headrace.transport.openai.schema import ChatRequest
from headrace.transport.prompts import Chat
from headrace.transport.replies import Headers
from headrace.transport.sampling_request import check_at_most
from headrace.transport.sequence import GeneratedSequence, Piece
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings


def chat_prompt(request: ChatRequest, settings: TransportSettings) -> Chat:
    """The conversation as the template wants it.

    Raises:
        InvalidRequest: too many messages, or one without content.
    """
    check_at_most("messages", len(request.messages), settings.max_messages, "max_messages")
    messages: list[dict[str, Any]] = []
    for position, message in enumerate(request.messages):
        if message.content is None:
            raise InvalidRequest(f"messages.{position}.content", None, "a text")
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name is not None:
            entry["name"] = message.name
        messages.append(entry)
    return Chat(messages)


def read_chat(
    request: ChatRequest, settings: TransportSettings, adapter: str | None
) -> GenerationSpec:
    """The generation that ``request`` asks for, by ``adapter``.

    Raises:
        HeadraceError: parameters that contradict each other or exceed the settings.
    """
    length = request.max_completion_tokens
    if length is None:
        length = request.max_tokens
    elif request.max_tokens not in (None, length):
        raise InvalidRequest("max_tokens", request.max_tokens, "equal to max_completion_tokens")
    top = check_at_most(
        "top_logprobs", request.top_logprobs or 0, settings.max_top_n_tokens, "max_top_n_tokens"
    )
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs", top, "absent unless `logprobs` is true")
    return GenerationSpec(
        prompts=[chat_prompt(request, settings)],
        sequences=check_at_most("n", request.n or 1, settings.max_best_of, "max_best_of"),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        adapter=adapter,
        prompt_field="messages",
        length_field="max_tokens" if request.max_tokens else "max_completion_tokens",
        sampling=read_sampling(
            request,
            settings,
            max_new_tokens=length,
            logprobs=bool(request.logprobs),
            top_n_tokens=top,
        ),
    )


class WholeChat:
    """Builds the reply of a chat that is not streamed."""

    def __init__(
        self, service: Service, generation: Generation, request: ChatRequest, identifier: str
    ) -> None:
        self._service = service
        self._generation = generation
        self._identifier = identifier
        self.with_logprobs = bool(request.logprobs)
        self._pieces: dict[int, list[Piece]] = {s.index: [] for s in generation.sequences}

    def keep(self, pieces: list[Piece]) -> None:
        """Remember pieces for their log-probabilities."""
        for piece in pieces:
            self._pieces[piece.sequence.index].append(piece)

    def build(self) -> tuple[bytes, Headers]:
        """The document; it has no headers of its own."""
        document = envelope(
            self._service, self._identifier, "chat.completion", self._generation.adapter
        )
        document["choices"] = [self._choice(sequence) for sequence in self._generation.sequences]
        document["usage"] = usage(self._generation)
        return msgspec.json.encode(document), []

    def _choice(self, sequence: GeneratedSequence) -> dict[str, Any]:
        logprobs = None
        if self.with_logprobs:
            tokenizer = self._service.model.tokenizer
            pieces = self._pieces[sequence.index]
            logprobs = {"content": [_content_logprob(tokenizer, piece) for piece in pieces]}
        return {
            "index": sequence.index,
            "message": {"role": "assistant", "content": sequence.text},
            "logprobs": logprobs,
            "finish_reason": finish_reason(sequence.finish_reason),
        }


class _Delta(msgspec.Struct, omit_defaults=True):
    content: str
    role: str | None = None


class _Choice(msgspec.Struct):
    index: int
    delta: _Delta
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatChoices:
    """Makes the choice of each chunk: the first of a sequence names the role."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        self._tokenizer = service.model.tokenizer
        self._with_logprobs = bool(request.logprobs)
        self._begun: set[int] = set()

    def __call__(self, piece: Piece) -> _Choice:
        """What a chunk says of one piece."""
        index = piece.sequence.index
        delta = _Delta(piece.text)
        if index not in self._begun:
            self._begun.add(index)
            delta.role = "assistant"
        logprobs = None
        if self._with_logprobs:
            logprobs = {"content": [_content_logprob(self._tokenizer, piece)]}
        reason = piece.finish_reason
        return _Choice(index, delta, logprobs, None if reason is None else finish_reason(reason))


def _content_logprob(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    return {
        **_logprob(tokenizer, piece.token_id, piece.logprob),
        "top_logprobs": [_top_logprob(tokenizer, top) for top in piece.top_tokens],
    }


def _top_logprob(tokenizer: Tokenizer, top: TokenLogprob) -> dict[str, Any]:
    return _logprob(tokenizer, top.token_id, top.logprob)


def _logprob(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": logprob,
        # A token may be a part of a character: its bytes join to the text, its string does not.
        "bytes": list(tokenizer.pieces.bytes_of(token_id)),
    }
