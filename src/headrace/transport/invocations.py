"""``/invocations``: SageMaker's one route for all kinds of request."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace.transport.documented import generation_responses, json_body
from headrace.transport.openai.routes import chat, completion
from headrace.transport.openai.schema import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
)
from headrace.transport.request_model import invalid, parse_object
from headrace.transport.tgi.routes import compatible
from headrace.transport.tgi.schema import CompatGenerateRequest, ErrorResponse, GenerateResponse

router = APIRouter(tags=["Text Generation Inference"])


@router.post(
    "/invocations",
    summary="Generate, chat or complete: the body's fields decide",
    responses={
        200: {"model": GenerateResponse | ChatCompletion | Completion},
        **generation_responses(ErrorResponse),
    },
    openapi_extra=json_body(CompatGenerateRequest, ChatRequest, CompletionRequest),
)
async def invocations(request: Request) -> Response:
    """``inputs`` asks for a generation, ``messages`` for a chat, ``prompt`` for a completion."""
    document = parse_object(await request.body())
    if "inputs" in document:
        return await compatible(request, document, as_list=False)
    if "messages" in document:
        return await chat(request, document)
    if "prompt" in document:
        return await completion(request, document)
    raise invalid("one of `inputs`, `messages` and `prompt` is required")
