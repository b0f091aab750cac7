"""The server that is loaded: where it is, what it speaks, which model it has."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from headrace.link.errors import ConfigurationError

APIS = ("completions", "chat", "tgi")
PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "tgi": "/generate_stream",
}
_SECONDS = 10.0


@dataclass(frozen=True)
class Target:
    """A server, one of its models, and the way it is asked.

    Attributes:
        prefix: Path before the routes, without a slash at its end.
        api: ``completions``, ``chat`` or ``tgi``.
        max_tokens: Longest prompt and output together; ``None``: the server does not say.
        system: What the server calls itself.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    prefix: str
    api: str
    model: str
    max_tokens: int | None
    system: str
    system_version: str
    headers: tuple[tuple[str, str], ...]

    def request(self, body: bytes) -> bytes:
        """The bytes of one POST with this JSON body."""
        lines = [
            f"POST {self.prefix}{PATHS[self.api]} HTTP/1.1",
            f"host: {self.host}:{self.port}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def find_target(url: str, api: str, model: str | None, api_key: str | None) -> Target:
    """Ask a server for its models and limits.

    Args:
        url: ``http://host:port``, with or without ``/v1``.
        model: The name to ask for; ``None``: the first that the server has.

    Raises:
        ConfigurationError: no server answers there, it speaks neither dialect, or it does not have
            the model; one line.
    """
    if api not in APIS:
        raise ConfigurationError(f"--api must be one of {', '.join(APIS)}, got `{api}`")
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"`{url}` is not a URL such as http://127.0.0.1:3000")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ConfigurationError(f"`{url}` names a port that does not exist") from None
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = f"{parts.scheme}://{host}:{port}{prefix}"
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(headers=headers, timeout=_SECONDS) as client:
        models = _get(client, url, f"{base}/v1/models")
        info = _get(client, url, f"{base}/info")
    served = _served(models, info)
    if not served:
        raise ConfigurationError(f"{url} has neither OpenAI's /v1/models nor TGI's /info")
    if model is not None and model not in served:
        raise ConfigurationError(f"{url} does not serve `{model}`; it serves {', '.join(served)}")
    name = model or next(iter(served))
    entry = served[name]
    limit = entry.get("max_model_len") or info.get("max_total_tokens")
    return Target(
        host=parts.hostname,
        port=port,
        tls=ssl.create_default_context() if parts.scheme == "https" else None,
        prefix=prefix,
        api=api,
        model=name,
        max_tokens=limit if isinstance(limit, int) else None,
        system=str(entry.get("owned_by") or "unnamed server"),
        system_version=str(info.get("version") or ""),
        headers=tuple(headers.items()),
    )


def _get(client: httpx.Client, url: str, address: str) -> dict[str, Any]:
    """The JSON object there; empty where there is none."""
    try:
        response = client.get(address)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TransportError) as error:
        raise ConfigurationError(f"no server answers at {url}: {error or repr(error)}") from None
    if response.status_code in (401, 403):
        raise ConfigurationError(f"{url} answers {response.status_code}: it wants an --api-key")
    if response.is_error:
        return {}
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _served(models: dict[str, Any], info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of each model to what ``/v1/models`` says of it."""
    entries = models.get("data")
    served = {
        str(entry["id"]): entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict) and "id" in entry
    }
    if not served and "model_id" in info:
        served[str(info["model_id"])] = {"owned_by": "text-generation-inference"}
    return served
