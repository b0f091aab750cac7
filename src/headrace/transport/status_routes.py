"""Routes that say how the server is: probes, bounds, metrics."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import Response

from headrace import __version__
from headrace.transport.errors import RequestFailure
from headrace.transport.metrics import CONTENT_TYPE
from headrace.transport.service import service_of
from headrace.transport.tgi.schema import ErrorResponse, Info

router = APIRouter(tags=["Status"])

_UNREADY: dict[int | str, dict[str, Any]] = {
    503: {"model": ErrorResponse, "description": "It cannot take work"}
}


@router.get("/health", summary="Is the server alive?")
async def health() -> Response:
    """It answers: it is. A lost engine is being restarted meanwhile; see ``/ready``."""
    return Response()


@router.get("/ping", summary="Is the server alive? (SageMaker)")
async def ping() -> Response:
    """The same as ``/health``."""
    return Response()


@router.get("/ready", summary="Can the server take work?", responses=_UNREADY)
async def ready(request: Request) -> Response:
    """Whether an engine is warm and the server is not shutting down."""
    service = service_of(request)
    if service.admission.closed:
        raise _unready("the server is shutting down")
    if not service.client.ready:
        raise _unready("the engine is not ready")
    return Response()


@router.get("/info", summary="What is served", responses={200: {"model": Info}})
async def info(request: Request) -> Response:
    """The model, and the bounds that requests meet; 0 where no engine has said them yet."""
    service = service_of(request)
    settings, limits = service.settings, service.client.limits
    document = {
        "model_id": service.model.model_id,
        "model_sha": service.model.revision,
        "model_pipeline_tag": "text-generation",
        "model_dtype": limits.dtype if limits else None,
        "model_device_type": limits.device if limits else None,
        "max_concurrent_requests": settings.max_concurrent_requests,
        "max_best_of": settings.max_best_of,
        "max_stop_sequences": settings.max_stop_sequences,
        "max_input_tokens": limits.max_input_tokens if limits else 0,
        "max_total_tokens": limits.max_total_tokens if limits else 0,
        "max_batch_total_tokens": limits.max_batch_total_tokens if limits else 0,
        "validation_workers": settings.validation_workers,
        "max_client_batch_size": settings.max_client_batch_size,
        "router": "headrace",
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
    return Response(msgspec.json.encode(document), media_type="application/json")


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """TGI's names, and what TGI does not measure."""
    return Response(service_of(request).metrics.exposition(), media_type=CONTENT_TYPE)


def _unready(message: str) -> RequestFailure:
    return RequestFailure(message, status=503, error_type="healthcheck", retry_after=5)
