"""The ASGI application: routes, middleware and errors put together."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from headrace import __version__
from headrace.link.errors import HeadraceError
from headrace.transport import invocations, status_routes
from headrace.transport.admission import Admission
from headrace.transport.auth import ApiKeyMiddleware
from headrace.transport.body import BodyLimitMiddleware
from headrace.transport.documented import body_schemas
from headrace.transport.engine_client import EngineClient
from headrace.transport.errors import RequestFailure, speaks_openai
from headrace.transport.metrics import Metrics
from headrace.transport.openai import routes as openai_routes
from headrace.transport.prompts import PromptEncoder
from headrace.transport.request_context import (
    RequestContext,
    RequestContextMiddleware,
    context_of,
)
from headrace.transport.request_model import invalid
from headrace.transport.served_model import ServedModel
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings
from headrace.transport.tgi import routes as tgi_routes

_log = structlog.get_logger("headrace.transport")

GENERATION_PATHS = frozenset(
    {
        "/",
        "/generate",
        "/generate_stream",
        "/invocations",
        "/v1/chat/completions",
        "/v1/completions",
    }
)


class _Application(FastAPI):
    """FastAPI whose OpenAPI document also describes the bodies that routes read themselves."""

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            document = super().openapi()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in body_schemas().items():
                schemas.setdefault(name, schema)
            self.openapi_schema = document
        return self.openapi_schema


def create_app(settings: TransportSettings, model: ServedModel, client: EngineClient) -> FastAPI:
    """The server's application over an engine that ``client`` reaches."""
    admission = Admission(settings.max_concurrent_requests)
    metrics = Metrics(client, admission)
    encoder = PromptEncoder(model, settings.validation_workers)
    app = _Application(
        title="headrace",
        version=__version__,
        summary="Text generation with TGI's and OpenAI's routes",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = Service(settings, model, client, admission, metrics, encoder)
    for router in (
        tgi_routes.router,
        openai_routes.router,
        invocations.router,
        status_routes.router,
    ):
        app.include_router(router)
    app.add_exception_handler(HeadraceError, _on_headrace_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_unexpected)

    def count(scope: Scope, context: RequestContext) -> None:
        if scope["path"] in GENERATION_PATHS and scope["method"] == "POST":
            unanswered = None if context.status == 200 else "unanswered"
            metrics.count_request(context.failure or unanswered)

    # The last added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware, limit=settings.payload_limit, timeout=settings.body_timeout
    )
    if settings.api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=settings.api_keys)
    if settings.cors_allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_allow_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id", "x-request-timeout"],
        )
    app.add_middleware(RequestContextMiddleware, on_end=count)
    return app


def _answer(request: Request, failure: RequestFailure) -> Response:
    context_of(request.scope).failure = failure.error_type
    response = Response(failure.body(speaks_openai(request.scope["path"])), failure.status)
    for name, value in failure.headers():
        response.headers[name.decode()] = value.decode()
    return response


async def _on_headrace_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HeadraceError):
        raise error
    return _answer(request, RequestFailure.of_error(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    failure = RequestFailure.of_status(error.status_code, error.detail)
    response = _answer(request, failure)
    response.headers.update(error.headers or {})
    return response


async def _on_validation_error(request: Request, error: Exception) -> Response:
    return _answer(request, invalid(str(error)))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    _log.exception("unexpected error", exc_info=error, path=request.scope["path"])
    return _answer(
        request, RequestFailure("an unexpected error", status=500, error_type="internal_error")
    )
