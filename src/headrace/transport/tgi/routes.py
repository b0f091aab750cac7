"""TGI's own generation and tokenization routes."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace.transport.documented import generation_responses, json_body
from headrace.transport.generation import start
from headrace.transport.openai.chat import chat_prompt
from headrace.transport.openai.schema import ChatRequest
from headrace.transport.replies import StreamReply, WholeReply
from headrace.transport.request_context import apply_timeout, context_of
from headrace.transport.request_model import parse_object, validate
from headrace.transport.service import Service, service_of
from headrace.transport.tgi.events import GenerateEvents
from headrace.transport.tgi.generation import (
    WholeGenerate,
    compute_headers,
    read_request,
    wants_details,
)
from headrace.transport.tgi.schema import (
    ChatTokenizeResponse,
    CompatGenerateRequest,
    ErrorResponse,
    GenerateParameters,
    GenerateRequest,
    GenerateResponse,
    SimpleToken,
    StreamResponse,
    TokenizeRequest,
)

router = APIRouter(tags=["Text Generation Inference"])

_ERRORS = generation_responses(ErrorResponse)


@router.post(
    "/generate",
    summary="Generate a text",
    responses={200: {"model": GenerateResponse}, **_ERRORS},
    openapi_extra=json_body(GenerateRequest),
)
async def generate(request: Request) -> Response:
    """Answer when the text is complete."""
    body = validate(GenerateRequest, parse_object(await request.body()))
    return await whole(request, body)


@router.post(
    "/generate_stream",
    summary="Generate a text, one server-sent event for each token",
    responses={
        200: {"model": StreamResponse, "content": {"text/event-stream": {}}},
        **_ERRORS,
    },
    openapi_extra=json_body(GenerateRequest),
)
async def generate_stream(request: Request) -> Response:
    """Answer token by token."""
    body = validate(GenerateRequest, parse_object(await request.body()))
    return await stream(request, body)


@router.post(
    "/",
    summary="Generate a text: `stream` chooses how to answer",
    responses={200: {"model": list[GenerateResponse]}, **_ERRORS},
    openapi_extra=json_body(CompatGenerateRequest),
)
async def compatible_generate(request: Request) -> Response:
    """Answer in the way of the old inference API: the prompt is part of the text by default."""
    return await compatible(request, parse_object(await request.body()))


async def compatible(
    request: Request, document: dict[str, Any], *, as_list: bool = True
) -> Response:
    """Answer a body of ``/`` or, as no list, of ``/invocations``."""
    body = validate(CompatGenerateRequest, document)
    parameters = body.parameters or GenerateParameters()
    if parameters.return_full_text is None:
        parameters.return_full_text = True
    body.parameters = parameters
    if body.stream:
        return await stream(request, body)
    return await whole(request, body, as_list=as_list)


async def whole(request: Request, body: GenerateRequest, *, as_list: bool = False) -> Response:
    """Answer with one document."""
    service = service_of(request)
    apply_timeout(request.scope, service.settings.request_timeout)
    spec = read_request(body, service.settings, streaming=False)
    generation = await start(service, spec, context_of(request.scope))
    reply = WholeGenerate(service, generation, body, full_text=_full_text(body), as_list=as_list)
    keep = reply.keep if wants_details(body.parameters or GenerateParameters()) else None
    return WholeReply(generation, reply.build, keep)


async def stream(request: Request, body: GenerateRequest) -> Response:
    """Answer with events."""
    service = service_of(request)
    apply_timeout(request.scope, service.settings.request_timeout)
    spec = read_request(body, service.settings, streaming=True)
    generation = await start(service, spec, context_of(request.scope))
    writer = GenerateEvents(
        service,
        generation,
        full_text_prefix=body.inputs if _full_text(body) else "",
        details=bool(body.parameters and body.parameters.details),
    )
    return StreamReply(generation, writer, compute_headers(service, body))


@router.post(
    "/tokenize",
    summary="Tokenize a text",
    responses={200: {"model": list[SimpleToken]}, **_ERRORS},
    openapi_extra=json_body(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """The tokens of ``inputs`` and the characters that each covers."""
    body = validate(TokenizeRequest, parse_object(await request.body()))
    framed = body.add_special_tokens is not False
    return _json(await _spans(service_of(request), body.inputs, framed))


@router.post(
    "/chat_tokenize",
    summary="Render the chat template and tokenize",
    responses={200: {"model": ChatTokenizeResponse}, **_ERRORS},
    openapi_extra=json_body(ChatRequest),
)
async def chat_tokenize(request: Request) -> Response:
    """The text that the template makes of the messages, and its tokens."""
    body = validate(ChatRequest, parse_object(await request.body()))
    service = service_of(request)
    text = await service.encoder.render(chat_prompt(body, service.settings))
    tokens = await _spans(service, text, framed=False)
    return _json({"tokenize_response": tokens, "templated_text": text})


async def _spans(service: Service, text: str, framed: bool) -> list[dict[str, Any]]:
    spans = await service.encoder.spans(text, framed)
    return [
        {"id": span.id, "text": span.text, "start": span.start, "stop": span.stop} for span in spans
    ]


def _full_text(body: GenerateRequest) -> bool:
    return bool(body.parameters and body.parameters.return_full_text)


def _json(document: object) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
