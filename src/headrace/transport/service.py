"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from headrace import __version__
from headrace.transport.admission import Admission
from headrace.transport.engine_client import EngineClient
from headrace.transport.metrics import Metrics
from headrace.transport.prompts import PromptEncoder
from headrace.transport.served_model import ServedModel
from headrace.transport.settings import TransportSettings


@dataclass(frozen=True, slots=True)
class Service:
    """The parts of one server."""

    settings: TransportSettings
    model: ServedModel
    client: EngineClient
    admission: Admission
    metrics: Metrics
    encoder: PromptEncoder

    @property
    def fingerprint(self) -> str:
        """What computes: OpenAI's ``system_fingerprint``."""
        return f"headrace-{__version__}"


def service_of(request: Request) -> Service:
    """The service behind the application that serves ``request``."""
    service = request.app.state.service
    if not isinstance(service, Service):
        raise TypeError("the application was not made by create_app")
    return service
