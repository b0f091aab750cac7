"""How bodies and errors of hand-read routes appear in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

_REFERENCE = "#/components/schemas/{model}"

_models: list[type[BaseModel]] = []

_MEANINGS = {
    401: "The API key is missing or wrong",
    408: "The body did not arrive in time",
    413: "The body is too large",
    422: "The request is not valid",
    424: "The generation failed",
    429: "Too many requests: see Retry-After",
    500: "The generation is incomplete",
    503: "No engine is ready, it was lost, or the server is shutting down",
    504: "The deadline passed",
}


def json_body(*models: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI fragment of a route whose JSON body is one of ``models``."""
    _models.extend(models)
    references = [{"$ref": _REFERENCE.format(model=model.__name__)} for model in models]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def generation_responses(error: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The failures of a route, in the shape ``error``."""
    return {status: {"model": error, "description": text} for status, text in _MEANINGS.items()}


def body_schemas() -> dict[str, Any]:
    """Component schemas of every model that was given to ``json_body``."""
    unique = list(dict.fromkeys(_models))
    _, schema = models_json_schema(
        [(model, "validation") for model in unique], ref_template=_REFERENCE
    )
    definitions: dict[str, Any] = schema.get("$defs", {})
    return definitions
