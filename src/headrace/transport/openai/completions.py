"""``/v1/completions``: requests, replies and chunks of the legacy route."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.errors import InvalidRequest
from headrace.transport.generation import Generation, GenerationSpec
from headrace.transport.openai.generation import (
    envelope,
    finish_reason,
    read_sampling,
    usage,
)
from headrace.transport.openai.schema import CompletionRequest
from headrace.transport.prompts import Prompt, Text, TokenIds
from headrace.transport.replies import Headers, incomplete
from headrace.transport.request_model import invalid
from headrace.transport.sampling_request import check_at_most
from headrace.transport.sequence import GeneratedSequence, Piece
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings


def read_completion(
    request: CompletionRequest, settings: TransportSettings, adapter: str | None
) -> GenerationSpec:
    """The generation that ``request`` asks for, by ``adapter``.

    Raises:
        HeadraceError: parameters that contradict each other or exceed the settings.
    """
    prompts: list[Prompt] = [
        Text(prompt) if isinstance(prompt, str) else TokenIds(prompt) for prompt in request.prompt
    ]
    if len(prompts) > settings.max_client_batch_size:
        raise invalid(
            f"`prompt` must hold at most max_client_batch_size "
            f"({settings.max_client_batch_size}) prompts, got {len(prompts)}",
            "prompt",
        )
    if any(isinstance(prompt, Text) and not prompt.text for prompt in prompts):
        raise InvalidRequest("prompt", "", "a text that is not empty")
    wanted = check_at_most("n", request.n or 1, settings.max_best_of, "max_best_of")
    best_of = wanted if request.best_of is None else request.best_of
    check_at_most("best_of", best_of, settings.max_best_of, "max_best_of")
    if best_of < wanted:
        raise InvalidRequest("best_of", best_of, f"at least n ({wanted})")
    if best_of > wanted and request.stream:
        raise InvalidRequest("best_of", best_of, "equal to n when streaming")
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens", 0, "a number > 0 unless `echo` is true")
    top = 0
    if request.logprobs is not None:
        top = check_at_most(
            "logprobs", request.logprobs, settings.max_top_n_tokens, "max_top_n_tokens"
        )
    with_logprobs = request.logprobs is not None
    return GenerationSpec(
        prompts=prompts,
        sequences=best_of,
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        adapter=adapter,
        prompt_field="prompt",
        length_field="max_tokens",
        sampling=read_sampling(
            request,
            settings,
            # The engine always generates: of a bare echo the one token is dropped.
            max_new_tokens=1 if request.max_tokens == 0 else request.max_tokens,
            logprobs=with_logprobs or best_of > wanted,
            top_n_tokens=top,
            prompt_logprobs=bool(request.echo) and with_logprobs,
        ),
    )


class _Logprobs:
    """Log-probabilities of one choice, in the legacy shape."""

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        self._tokenizer = tokenizer
        self._offset = offset
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def add_prompt(self, sequence: GeneratedSequence) -> None:
        """The prompt's tokens; the engine knows no alternatives to them."""
        logprobs = [None, *sequence.prompt_logprobs]
        if len(logprobs) != len(sequence.prompt_ids):
            raise incomplete("the engine sent no log-probabilities of the prompt")
        for token_id, logprob in zip(sequence.prompt_ids, logprobs, strict=True):
            text = self._tokenizer.token_text(token_id)
            self._add(text, text, logprob, None if logprob is None else {text: logprob})

    def add(self, piece: Piece) -> None:
        """A generated token and its alternatives."""
        text = self._tokenizer.token_text(piece.token_id)
        top = {self._tokenizer.token_text(t.token_id): t.logprob for t in piece.top_tokens}
        if piece.logprob is not None:
            top.setdefault(text, piece.logprob)
        self._add(text, piece.text, piece.logprob, top)

    def _add(
        self, token: str, text: str, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        self.tokens.append(token)
        self.token_logprobs.append(logprob)
        self.top_logprobs.append(top)
        self.text_offset.append(self._offset)
        self._offset += len(text)

    @property
    def offset(self) -> int:
        """Characters so far."""
        return self._offset

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }


class _Echo:
    """The texts of the prompts, as far as the reply repeats them."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self._tokenizer = service.model.tokenizer
        self._request = request
        self._per_prompt = request.best_of or request.n or 1

    def of(self, sequence: GeneratedSequence) -> str:
        """The prompt of ``sequence``, or nothing where it is not repeated."""
        if not self._request.echo:
            return ""
        prompt = self._request.prompt[sequence.index // self._per_prompt]
        return prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)


class WholeCompletion:
    """Builds the reply of a completion that is not streamed."""

    def __init__(
        self, service: Service, generation: Generation, request: CompletionRequest, identifier: str
    ) -> None:
        self._service = service
        self._generation = generation
        self._request = request
        self._identifier = identifier
        self._echo = _Echo(service, request)
        self._pieces: dict[int, list[Piece]] = {s.index: [] for s in generation.sequences}

    def keep(self, pieces: list[Piece]) -> None:
        """Remember pieces for their log-probabilities."""
        for piece in pieces:
            self._pieces[piece.sequence.index].append(piece)

    def build(self) -> tuple[bytes, Headers]:
        """The document; it has no headers of its own."""
        document = envelope(
            self._service, self._identifier, "text_completion", self._generation.adapter
        )
        document["choices"] = [
            self._choice(index, sequence) for index, sequence in enumerate(self._chosen())
        ]
        document["usage"] = usage(self._generation)
        return msgspec.json.encode(document), []

    def _chosen(self) -> list[GeneratedSequence]:
        """For each prompt its ``n`` best by their log-probabilities for each token."""
        sequences = self._generation.sequences
        wanted = self._request.n or 1
        best_of = self._request.best_of or wanted
        if best_of == wanted:
            return sequences
        chosen: list[GeneratedSequence] = []
        for first in range(0, len(sequences), best_of):
            candidates = sequences[first : first + best_of]
            candidates.sort(key=lambda s: s.logprob / max(s.tokens, 1), reverse=True)
            chosen.extend(candidates[:wanted])
        return chosen

    def _choice(self, index: int, sequence: GeneratedSequence) -> dict[str, Any]:
        bare_echo = self._request.max_tokens == 0
        echoed = self._echo.of(sequence)
        logprobs = None
        if self._request.logprobs is not None:
            logprobs = _Logprobs(self._service.model.tokenizer, 0)
            if self._request.echo:
                logprobs.add_prompt(sequence)
            for piece in () if bare_echo else self._pieces[sequence.index]:
                logprobs.add(piece)
        return {
            "index": index,
            "text": echoed if bare_echo else echoed + sequence.text,
            "logprobs": None if logprobs is None else logprobs.document(),
            "finish_reason": finish_reason(sequence.finish_reason),
        }


class _Choice(msgspec.Struct):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class CompletionChoices:
    """Makes the choice of each chunk, and the chunk that repeats a prompt."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self._tokenizer = service.model.tokenizer
        self._request = request
        self._echo = _Echo(service, request)
        self._offsets: dict[int, int] = {}

    def __call__(self, piece: Piece) -> _Choice:
        """What a chunk says of one piece."""
        sequence = piece.sequence
        reason = piece.finish_reason
        if self._request.max_tokens == 0:
            return _Choice(sequence.index, "", None, finish_reason(reason))
        logprobs = None
        if self._request.logprobs is not None:
            table = _Logprobs(self._tokenizer, self._offsets.get(sequence.index, 0))
            table.add(piece)
            self._offsets[sequence.index] = table.offset
            logprobs = table.document()
        return _Choice(
            sequence.index, piece.text, logprobs, None if reason is None else finish_reason(reason)
        )

    def opening(self, sequence: GeneratedSequence) -> _Choice:
        """The repeated prompt."""
        text = self._echo.of(sequence)
        logprobs = None
        if self._request.logprobs is not None:
            table = _Logprobs(self._tokenizer, 0)
            table.add_prompt(sequence)
            logprobs = table.document()
        self._offsets[sequence.index] = len(text)
        return _Choice(sequence.index, text, logprobs, None)
