"""From the bytes of a body to a validated request model, with errors that name the field."""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic
import pydantic_core

from headrace.link.errors import ErrorCode
from headrace.transport.errors import RequestFailure

_SHOWN = 80


class RequestModel(pydantic.BaseModel):
    """Base of every request body: no coercion, no unknown field, finite numbers only."""

    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )


_Model = TypeVar("_Model", bound=RequestModel)


def invalid(message: str, param: str | None = None) -> RequestFailure:
    """A refusal of the request as a whole or of one of its fields."""
    failure = RequestFailure.of_code(ErrorCode.VALIDATION, message)
    failure.param = param
    return failure


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        RequestFailure: not UTF-8, not JSON, nested too deeply, NaN or Infinity, or no object.
    """
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise invalid(f"the request body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise invalid("the request body must be a JSON object")
    return document


def validate(model: type[_Model], document: dict[str, Any]) -> _Model:
    """``document`` as a ``model``.

    Raises:
        RequestFailure: naming the first offending field, its value and its bound.
    """
    # Before pydantic, which would describe each of a million unknown fields.
    for name in document:
        if name not in model.model_fields:
            raise invalid(f"`{_shorten(name)}` is not a parameter of this route", _shorten(name))
    try:
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        raise _explain(error) from None


def _explain(error: pydantic.ValidationError) -> RequestFailure:
    first = error.errors(include_url=False)[0]
    field = ".".join(_shorten(str(part)) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            return invalid(f"`{field}` is not a parameter of this route", field)
        case "missing":
            return invalid(f"`{field}` is required", field)
        case "unsupported":
            return invalid(f"`{field}` {first['msg']}", field)
    message = first["msg"][:1].lower() + first["msg"][1:]
    return invalid(f"`{field}`: {message}, got {_shorten(repr(first['input']))}", field)


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
