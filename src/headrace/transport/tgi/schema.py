"""Bodies and replies of TGI's own routes, in TGI's shapes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from headrace.transport import fields
from headrace.transport.request_model import RequestModel

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class GenerateParameters(RequestModel):
    """How to generate; ``null`` means absent everywhere.

    Sampling is on with ``do_sample`` and with any ``temperature`` other than 1, ``top_k``,
    ``top_p`` or ``typical_p``. Parameters after ``watermark`` are headrace's own.
    """

    best_of: fields.Count | None = None
    temperature: fields.Temperature | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    frequency_penalty: fields.FrequencyPenalty | None = None
    top_k: fields.TopK | None = None
    top_p: fields.TopP | None = None
    typical_p: fields.TypicalP | None = None
    do_sample: bool | None = None
    max_new_tokens: Annotated[
        fields.MaxNewTokens | None, Field(description="Default: what fits.")
    ] = None
    return_full_text: bool | None = None
    stop: fields.StopStrings | None = None
    truncate: fields.Truncate | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: fields.Seed | None = None
    top_n_tokens: fields.TopNTokens | None = None
    grammar: fields.Refused = None
    adapter_id: fields.AdapterId | None = None
    watermark: fields.RefusedIfTrue = None
    presence_penalty: fields.PresencePenalty | None = None
    logit_bias: fields.LogitBias | None = None
    min_new_tokens: fields.MinNewTokens | None = None
    ignore_eos: bool | None = None
    priority: fields.Priority | None = None
    cache_salt: fields.CacheSalt | None = None


class GenerateRequest(RequestModel):
    """Body of ``/generate`` and ``/generate_stream``."""

    inputs: Annotated[str, Field(examples=["My name is Olivier and I"])]
    parameters: GenerateParameters | None = None


class CompatGenerateRequest(GenerateRequest):
    """Body of ``/``: ``stream`` chooses between the two ways to answer."""

    stream: bool | None = None


class TokenizeRequest(GenerateRequest):
    """Body of ``/tokenize``; ``parameters`` change nothing."""

    add_special_tokens: bool | None = None


class ErrorResponse(BaseModel):
    """An error."""

    error: str
    error_type: str


class PrefillToken(BaseModel):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class Token(BaseModel):
    """A generated token."""

    id: int
    text: str
    logprob: float | None
    special: bool


class BestOfSequence(BaseModel):
    """A sequence that ``best_of`` did not choose."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | None = None


class Details(BaseModel):
    """How a text came to be."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | None = None
    top_tokens: list[list[Token]] | None = None


class GenerateResponse(BaseModel):
    """Reply of ``/generate``."""

    generated_text: str
    details: Details | None = None


class StreamDetails(BaseModel):
    """How a streamed text came to be."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None = None
    input_length: int


class StreamResponse(BaseModel):
    """One event of ``/generate_stream``."""

    index: int
    token: Token
    top_tokens: list[Token] | None = None
    generated_text: str | None = None
    details: StreamDetails | None = None


class SimpleToken(BaseModel):
    """A token of a text and the characters that it covers."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(BaseModel):
    """Reply of ``/chat_tokenize``."""

    tokenize_response: list[SimpleToken]
    templated_text: str


class Info(BaseModel):
    """What is served, and the bounds that requests meet."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
