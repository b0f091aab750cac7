"""Who may call: API keys and CORS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

OPEN = ["/health", "/ready", "/ping"]
CLOSED = ["/info", "/metrics", "/v1/models", "/docs", "/openapi.json", "/nothing"]
CLOSED_POST = [
    "/",
    "/generate",
    "/generate_stream",
    "/invocations",
    "/tokenize",
    "/chat_tokenize",
    "/v1/chat/completions",
    "/v1/completions",
]


@pytest.fixture(scope="module")
def guarded(start_server: Callable[..., Any]) -> str:
    return start_server(api_keys=("first", "sécond")).url


def test_probes_are_open(guarded: str) -> None:
    assert [httpx.get(guarded + path).status_code for path in OPEN] == [200] * 3


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("key", [None, "Bearer wrong", "Bearer", "Basic first", "first"])
def test_everything_else_needs_a_key(guarded: str, path: str, key: str | None) -> None:
    reply = httpx.get(guarded + path, headers={} if key is None else {"authorization": key})
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert "error" in reply.json()


@pytest.mark.parametrize("path", CLOSED_POST)
def test_work_needs_a_key(guarded: str, path: str) -> None:
    assert httpx.post(guarded + path, json={"inputs": "Hi"}).status_code == 401


def test_each_key_opens(guarded: str) -> None:
    for key in ("first", "sécond"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert httpx.get(f"{guarded}/info", headers=headers).status_code == 200


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {"origin": origin, "access-control-request-method": "POST"}
    return httpx.options(f"{url}/generate", headers=headers)


def test_cors_is_closed_unless_opened(server: Any, start_server: Callable[..., Any]) -> None:
    reply = httpx.get(f"{server.url}/health", headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in reply.headers
    assert preflight(server.url, "https://a.example").status_code == 405
    opened = start_server(cors_allow_origin=("https://a.example",), api_keys=("k",))
    allowed = preflight(opened.url, "https://a.example")
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    refused = preflight(opened.url, "https://b.example")
    assert "access-control-allow-origin" not in refused.headers
