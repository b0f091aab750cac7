"""Bodies and replies of the OpenAI routes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, FailFast, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from headrace.transport import fields
from headrace.transport.request_model import RequestModel


def _one_text(value: object) -> object:
    """Message content as one string: parts of type ``text`` are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) != 2:
            raise PydanticCustomError("content", 'parts must be {"type": "text", "text": "…"}')
        texts.append(part["text"])
    return "".join(texts)


def _prompts(value: object) -> object:
    """A legacy prompt in any of its four shapes as a list of strings or lists of token ids."""
    if isinstance(value, str):
        return [value]
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    if kinds == {int}:
        return [value]
    if kinds == {str}:
        return value
    if (
        kinds == {list}
        and isinstance(value, list)
        and all(set(map(type, p)) == {int} for p in value)
    ):
        return value
    raise PydanticCustomError(
        "prompt", "must be a string, a list of strings, token ids or a list of token id lists"
    )


Content = Annotated[
    str | None,
    BeforeValidator(_one_text),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "type": {"type": "string", "enum": ["text"]},
                            "text": {"type": "string"},
                        },
                        "required": ["type", "text"],
                        "additionalProperties": False,
                    },
                },
                {"type": "null"},
            ]
        }
    ),
]
Prompts = Annotated[
    Any,
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0},
                        "minItems": 1,
                    },
                    "minItems": 1,
                },
            ]
        }
    ),
]


class Message(RequestModel):
    """One message of a chat."""

    role: Annotated[str, Field(examples=["user"])]
    content: Annotated[Content, Field(examples=["What is deep learning?"])] = None
    name: str | None = None
    tool_call_id: fields.Refused = None
    tool_calls: fields.RefusedList = None
    function_call: fields.Refused = None
    audio: fields.Refused = None
    refusal: fields.Ignored = None
    annotations: fields.Ignored = None


Messages = Annotated[list[Message], Field(min_length=1), FailFast()]


class SharedParameters(RequestModel):
    """Parameters that chat and legacy completions have in common; ``null`` means absent.

    Parameters after ``metadata`` are headrace's own, under the names of TGI and vLLM.
    """

    model: str | None = None
    frequency_penalty: fields.FrequencyPenalty | None = None
    presence_penalty: fields.PresencePenalty | None = None
    logit_bias: fields.LogitBias | None = None
    n: fields.Count | None = None
    seed: fields.Seed | None = None
    stop: fields.StopStrings | None = None
    stream: bool | None = None
    stream_options: fields.StreamOptions | None = None
    temperature: fields.TemperatureOrGreedy | None = None
    top_p: fields.TopP | None = None
    user: fields.Ignored = None
    store: fields.Ignored = None
    service_tier: fields.Ignored = None
    metadata: fields.Ignored = None
    top_k: fields.TopK | None = None
    typical_p: fields.TypicalP | None = None
    repetition_penalty: fields.RepetitionPenalty | None = None
    min_new_tokens: fields.MinNewTokens | None = None
    ignore_eos: bool | None = None
    priority: fields.Priority | None = None
    cache_salt: fields.CacheSalt | None = None


class ChatRequest(SharedParameters):
    """Body of ``/v1/chat/completions``."""

    messages: Messages
    max_tokens: Annotated[fields.MaxNewTokens | None, Field(description="Default: what fits.")] = (
        None
    )
    max_completion_tokens: fields.MaxNewTokens | None = None
    logprobs: bool | None = None
    top_logprobs: fields.TopNTokens | None = None
    response_format: fields.ResponseFormat = None
    tools: fields.RefusedList = None
    tool_choice: fields.ToolChoice = None
    tool_prompt: fields.Refused = None
    guideline: fields.Refused = None
    parallel_tool_calls: fields.Ignored = None


class CompletionRequest(SharedParameters):
    """Body of ``/v1/completions``."""

    prompt: Annotated[Prompts, Field(examples=["Once upon a time"])]
    max_tokens: Annotated[
        fields.MaxNewTokensOrNone | None,
        Field(description="Default: what fits. 0 is possible with `echo`."),
    ] = None
    best_of: fields.Count | None = None
    echo: bool | None = None
    logprobs: Annotated[
        fields.TopNTokens | None, Field(description="Number of alternatives to each token.")
    ] = None
    suffix: fields.Refused = None


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorBody


class CachedTokens(BaseModel):
    """Prompt tokens that were not computed anew."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class TopLogprob(BaseModel):
    """An alternative to a token."""

    token: str
    logprob: float | None
    bytes: list[int] | None


class ContentLogprob(TopLogprob):
    """A token with its alternatives."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message."""

    content: list[ContentLogprob]


class AssistantMessage(BaseModel):
    """The generated message."""

    role: str
    content: str


class ChatChoice(BaseModel):
    """One generated message."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Reply of ``/v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """What a chunk adds to a choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(BaseModel):
    """One event of a chat stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One generated text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(BaseModel):
    """Reply of ``/v1/completions``; also one event of its stream, where ``usage`` comes last."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class ModelInfo(BaseModel):
    """A served model, or an adapter over its ``parent``."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None


class ModelsInfo(BaseModel):
    """All served models."""

    object: Literal["list"]
    data: list[ModelInfo]
