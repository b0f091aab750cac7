"""Types of request fields that several routes share; their bounds are ``link.sampling.BOUNDS``."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from headrace.link.sampling import BOUNDS

MAX_PRIORITY = 100
_MAX_SALT_LENGTH = 256


def _real(name: str) -> Any:
    bound = BOUNDS[name]
    return Field(gt=bound.gt, ge=bound.ge, le=bound.le)


def _whole(name: str) -> Any:
    bound = BOUNDS[name]
    gt, ge, le = (None if side is None else int(side) for side in (bound.gt, bound.ge, bound.le))
    return Field(gt=gt, ge=ge, le=le)


Temperature = Annotated[float, _real("temperature")]
TemperatureOrGreedy = Annotated[
    float, Field(ge=BOUNDS["temperature"].gt, description="0 takes the most likely token.")
]
TopK = Annotated[int, _whole("top_k")]
TopP = Annotated[float, _real("top_p")]
TypicalP = Annotated[float, _real("typical_p")]
RepetitionPenalty = Annotated[float, _real("repetition_penalty")]
FrequencyPenalty = Annotated[float, _real("frequency_penalty")]
PresencePenalty = Annotated[float, _real("presence_penalty")]
MaxNewTokens = Annotated[int, _whole("max_new_tokens")]
MaxNewTokensOrNone = Annotated[int, Field(ge=0)]
MinNewTokens = Annotated[int, _whole("min_new_tokens")]
TopNTokens = Annotated[int, _whole("top_n_tokens")]
Truncate = Annotated[int, _whole("truncate")]
Seed = Annotated[int, _whole("seed")]
Count = Annotated[int, Field(gt=0)]
Priority = Annotated[
    int,
    Field(
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Larger is served earlier; 0 is ordinary.",
    ),
]
CacheSalt = Annotated[
    str,
    Field(
        max_length=_MAX_SALT_LENGTH,
        description="Cached prefixes are shared only among requests of the same salt.",
    ),
]
AdapterId = Annotated[
    str,
    Field(
        max_length=256,
        description="Name of the LoRA adapter that computes the text; null: the base model.",
    ),
]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]],
    Field(description="Token id (as a string) to a value added to its logit.", max_length=1024),
]


def _strings(value: object) -> object:
    """One string or a list of them as a list; the first wrong one is not followed by a million."""
    if value is None or isinstance(value, str):
        return None if value is None else [value]
    if isinstance(value, list) and set(map(type, value)) <= {str}:
        return value
    raise PydanticCustomError("strings", "must be a string or a list of strings")


StopStrings = Annotated[
    list[str],
    BeforeValidator(_strings),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def _refuse(value: object) -> None:
    if value is not None:
        raise PydanticCustomError("unsupported", "is not supported by this server")


def _refuse_content(value: object) -> None:
    if value is not None and value != []:
        raise PydanticCustomError("unsupported", "is not supported by this server")


def _refuse_true(value: bool | None) -> bool | None:
    if value:
        raise PydanticCustomError("unsupported", "is not supported by this server")
    return value


def _refuse_choice(value: str | None) -> str | None:
    if value not in (None, "none"):
        raise PydanticCustomError(
            "unsupported", "must be `none`: tools are not supported by this server"
        )
    return value


def _refuse_format(value: Any) -> Any:
    if value is not None and value != {"type": "text"}:
        raise PydanticCustomError(
            "unsupported", "must be of type `text`: no other format is supported by this server"
        )
    return value


Refused = Annotated[
    Any, AfterValidator(_refuse), Field(description="Not supported: refused unless null.")
]
RefusedList = Annotated[
    Any,
    AfterValidator(_refuse_content),
    Field(description="Not supported: refused unless null or empty."),
]
RefusedIfTrue = Annotated[
    bool | None,
    AfterValidator(_refuse_true),
    Field(description="Not supported: refused when true."),
]
ToolChoice = Annotated[
    Any,
    AfterValidator(_refuse_choice),
    Field(description="Tools are not supported: refused unless null or `none`."),
]
ResponseFormat = Annotated[
    Any,
    AfterValidator(_refuse_format),
    Field(description='Refused unless null or `{"type": "text"}`.'),
]
Ignored = Annotated[Any, Field(description="Accepted; changes nothing.")]


class StreamOptions(pydantic.BaseModel):
    """What a stream carries besides tokens."""

    model_config = pydantic.ConfigDict(strict=True, extra="forbid")

    include_usage: Annotated[
        bool | None, Field(description="Send a last chunk with the token usage.")
    ] = None
    include_obfuscation: Ignored = None
