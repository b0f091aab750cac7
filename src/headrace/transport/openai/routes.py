"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace.transport.documented import generation_responses, json_body
from headrace.transport.generation import start
from headrace.transport.identifiers import unique_name
from headrace.transport.openai.chat import ChatChoices, WholeChat, read_chat
from headrace.transport.openai.chunks import ChunkWriter
from headrace.transport.openai.completions import (
    CompletionChoices,
    WholeCompletion,
    read_completion,
)
from headrace.transport.openai.generation import envelope, named_adapter, wants_usage
from headrace.transport.openai.schema import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ModelInfo,
    ModelsInfo,
    OpenAIError,
)
from headrace.transport.replies import StreamReply, WholeReply
from headrace.transport.request_context import apply_timeout, context_of
from headrace.transport.request_model import parse_object, validate
from headrace.transport.service import Service, service_of

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_ERRORS = generation_responses(OpenAIError)
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": OpenAIError, "description": "The model is not served here"}
}


@router.post(
    "/chat/completions",
    summary="Continue a conversation",
    responses={200: {"model": ChatCompletion}, **_NOT_FOUND, **_ERRORS},
    openapi_extra=json_body(ChatRequest),
)
async def chat_completions(request: Request) -> Response:
    """Answer whole, or with ``stream`` chunk by chunk."""
    return await chat(request, parse_object(await request.body()))


@router.post(
    "/completions",
    summary="Continue a text",
    responses={200: {"model": Completion}, **_NOT_FOUND, **_ERRORS},
    openapi_extra=json_body(CompletionRequest),
)
async def completions(request: Request) -> Response:
    """Answer whole, or with ``stream`` chunk by chunk."""
    return await completion(request, parse_object(await request.body()))


async def chat(request: Request, document: dict[str, Any]) -> Response:
    """Answer a chat request."""
    body = validate(ChatRequest, document)
    service = service_of(request)
    adapter = named_adapter(service, body.model)
    apply_timeout(request.scope, service.settings.request_timeout)
    spec = read_chat(body, service.settings, adapter)
    generation = await start(service, spec, context_of(request.scope))
    identifier = f"chatcmpl-{unique_name()}"
    if not body.stream:
        whole = WholeChat(service, generation, body, identifier)
        return WholeReply(generation, whole.build, whole.keep if whole.with_logprobs else None)
    writer = ChunkWriter(
        envelope(service, identifier, "chat.completion.chunk", adapter),
        generation,
        ChatChoices(service, body),
        with_usage=wants_usage(body),
    )
    return StreamReply(generation, writer, [])


async def completion(request: Request, document: dict[str, Any]) -> Response:
    """Answer a legacy completion request."""
    body = validate(CompletionRequest, document)
    service = service_of(request)
    adapter = named_adapter(service, body.model)
    apply_timeout(request.scope, service.settings.request_timeout)
    spec = read_completion(body, service.settings, adapter)
    generation = await start(service, spec, context_of(request.scope))
    identifier = f"cmpl-{unique_name()}"
    if not body.stream:
        whole = WholeCompletion(service, generation, body, identifier)
        return WholeReply(
            generation, whole.build, whole.keep if body.logprobs is not None else None
        )
    choices = CompletionChoices(service, body)
    writer = ChunkWriter(
        envelope(service, identifier, "text_completion", adapter),
        generation,
        choices,
        with_usage=wants_usage(body),
        openings=choices.opening if body.echo else None,
    )
    return StreamReply(generation, writer, [])


@router.get("/models", summary="All served models", responses={200: {"model": ModelsInfo}})
async def models(request: Request) -> Response:
    """The model itself, then its adapters."""
    service = service_of(request)
    served = [_model_info(service, name) for name in (None, *service.client.adapters)]
    return _json({"object": "list", "data": served})


@router.get(
    "/models/{model_id:path}",
    summary="A served model",
    responses={200: {"model": ModelInfo}, **_NOT_FOUND},
)
async def model(request: Request, model_id: str) -> Response:
    """The served model or the adapter of that name."""
    service = service_of(request)
    return _json(_model_info(service, named_adapter(service, model_id)))


def _model_info(service: Service, adapter: str | None) -> dict[str, Any]:
    return {
        "id": adapter or service.model.model_id,
        "object": "model",
        "created": service.model.loaded_at,
        "owned_by": "headrace",
        "parent": None if adapter is None else service.model.model_id,
    }


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
