"""TGI's parameters as a generation, and its whole replies."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.link.errors import InvalidRequest
from headrace.link.sampling import SamplingParams
from headrace.transport.generation import Generation, GenerationSpec
from headrace.transport.prompts import Text
from headrace.transport.replies import Headers, incomplete
from headrace.transport.sampling_request import check_at_most, check_stop, read_logit_bias
from headrace.transport.sequence import GeneratedSequence, Piece
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings
from headrace.transport.tgi.schema import GenerateParameters, GenerateRequest


def read_request(
    request: GenerateRequest, settings: TransportSettings, *, streaming: bool
) -> GenerationSpec:
    """The generation that ``request`` asks for.

    Raises:
        HeadraceError: parameters that contradict each other or exceed the settings.
    """
    parameters = request.parameters or GenerateParameters()
    if not request.inputs:
        raise InvalidRequest("inputs", request.inputs, "a text that is not empty")
    best_of = check_at_most("best_of", parameters.best_of or 1, settings.max_best_of, "max_best_of")
    sampling = _samples(parameters)
    if best_of > 1 and streaming:
        raise InvalidRequest("best_of", best_of, "1 when streaming")
    if best_of > 1 and not sampling:
        raise InvalidRequest("best_of", best_of, "1 without sampling")
    if parameters.decoder_input_details and streaming:
        raise InvalidRequest("decoder_input_details", True, "false when streaming")
    top_n = check_at_most(
        "top_n_tokens", parameters.top_n_tokens or 0, settings.max_top_n_tokens, "max_top_n_tokens"
    )
    return GenerationSpec(
        prompts=[Text(request.inputs)],
        sequences=best_of,
        priority=parameters.priority or 0,
        cache_salt=parameters.cache_salt or "",
        adapter=parameters.adapter_id,
        sampling=SamplingParams(
            max_new_tokens=parameters.max_new_tokens,
            min_new_tokens=parameters.min_new_tokens or 0,
            ignore_eos=bool(parameters.ignore_eos),
            do_sample=sampling,
            temperature=_or(parameters.temperature, 1.0),
            top_k=parameters.top_k,
            top_p=parameters.top_p,
            typical_p=parameters.typical_p,
            repetition_penalty=_or(parameters.repetition_penalty, 1.0),
            frequency_penalty=_or(parameters.frequency_penalty, 0.0),
            presence_penalty=_or(parameters.presence_penalty, 0.0),
            logit_bias=read_logit_bias(parameters.logit_bias),
            stop=check_stop(parameters.stop, settings),
            seed=parameters.seed,
            truncate=parameters.truncate,
            # Every streamed token bears its log-probability, and best_of chooses by them.
            logprobs=streaming or best_of > 1 or wants_details(parameters),
            top_n_tokens=top_n,
            decoder_input_details=bool(parameters.decoder_input_details),
        ),
    )


def wants_details(parameters: GenerateParameters) -> bool:
    """Whether the reply has details."""
    return bool(parameters.details or parameters.decoder_input_details)


def _samples(parameters: GenerateParameters) -> bool:
    return bool(parameters.do_sample) or (
        parameters.temperature not in (None, 1.0)
        or parameters.top_k is not None
        or parameters.top_p is not None
        or parameters.typical_p is not None
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


class WholeGenerate:
    """Builds the reply of ``/generate``.

    Args:
        full_text: Put the prompt before the text.
        as_list: In a list of one, as the route ``/`` has it.
    """

    def __init__(
        self,
        service: Service,
        generation: Generation,
        request: GenerateRequest,
        *,
        full_text: bool,
        as_list: bool,
    ) -> None:
        self._service = service
        self._generation = generation
        self._request = request
        self._full_text = full_text
        self._as_list = as_list
        self._pieces: dict[int, list[Piece]] = {s.index: [] for s in generation.sequences}

    def keep(self, pieces: list[Piece]) -> None:
        """Remember pieces for the details."""
        for piece in pieces:
            self._pieces[piece.sequence.index].append(piece)

    def build(self) -> tuple[bytes, Headers]:
        """The document and its headers."""
        ranked = sorted(self._generation.sequences, key=lambda s: s.logprob, reverse=True)
        best = ranked[0]
        reply: dict[str, Any] = {"generated_text": self._text(best)}
        if wants_details(self._request.parameters or GenerateParameters()):
            reply["details"] = details = self._details(best)
            if len(ranked) > 1:
                details["best_of_sequences"] = [
                    {"generated_text": self._text(other), **self._details(other)}
                    for other in ranked[1:]
                ]
        document = [reply] if self._as_list else reply
        return msgspec.json.encode(document), self._headers()

    def _text(self, sequence: GeneratedSequence) -> str:
        text = sequence.text_with_stop
        return self._request.inputs + text if self._full_text else text

    def _details(self, sequence: GeneratedSequence) -> dict[str, Any]:
        tokenizer = self._service.model.tokenizer
        sampling = self._generation.sampling
        pieces = self._pieces[sequence.index]
        details: dict[str, Any] = {
            "finish_reason": sequence.finish_reason,
            "generated_tokens": sequence.tokens,
            "seed": sequence.seed if sampling.do_sample else None,
            "prefill": self._prefill(sequence) if sampling.decoder_input_details else [],
            "tokens": [
                {
                    "id": piece.token_id,
                    "text": piece.token_text,
                    "logprob": piece.logprob,
                    "special": tokenizer.is_special(piece.token_id),
                }
                for piece in pieces
            ],
        }
        if sampling.top_n_tokens:
            details["top_tokens"] = [
                [
                    {
                        "id": top.token_id,
                        "text": tokenizer.token_text(top.token_id),
                        "logprob": top.logprob,
                        "special": tokenizer.is_special(top.token_id),
                    }
                    for top in piece.top_tokens
                ]
                for piece in pieces
            ]
        return details

    def _prefill(self, sequence: GeneratedSequence) -> list[dict[str, Any]]:
        tokenizer = self._service.model.tokenizer
        logprobs = [None, *sequence.prompt_logprobs]
        if len(logprobs) != len(sequence.prompt_ids):
            raise incomplete("the engine sent no log-probabilities of the prompt")
        return [
            {"id": token_id, "text": tokenizer.token_text(token_id), "logprob": logprob}
            for token_id, logprob in zip(sequence.prompt_ids, logprobs, strict=True)
        ]

    def _headers(self) -> Headers:
        generation, timing = self._generation, self._generation.timing
        validation = timing.validated - timing.arrived
        inference = max(timing.ended - timing.validated - timing.queue_seconds, 0.0)
        tokens = generation.generated_tokens
        figures = {
            "x-compute-time": f"{timing.ended - timing.arrived:.6f}",
            "x-total-time": _milliseconds(timing.ended - timing.arrived),
            "x-validation-time": _milliseconds(validation),
            "x-queue-time": _milliseconds(timing.queue_seconds),
            "x-inference-time": _milliseconds(inference),
            "x-time-per-token": _milliseconds(inference / max(tokens, 1)),
            "x-prompt-tokens": str(generation.prompt_tokens),
            "x-generated-tokens": str(tokens),
        }
        return [
            *compute_headers(self._service, self._request),
            *((name.encode(), figure.encode()) for name, figure in figures.items()),
        ]


def compute_headers(service: Service, request: GenerateRequest) -> Headers:
    """The headers that whole and streamed replies share."""
    limits = service.client.limits
    kind = "unknown" if limits is None else f"{limits.device}+{limits.backend}"
    return [
        (b"x-compute-type", kind.encode("latin-1", "replace")),
        (b"x-compute-characters", str(len(request.inputs)).encode()),
    ]


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
