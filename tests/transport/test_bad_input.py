"""Bad bytes: every one gets a JSON error, and the next request is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

HEAD = b"POST /generate HTTP/1.1\r\nhost: localhost\r\n"


def exchange(port: int, *parts: bytes, seconds: float = 10.0) -> bytes:
    """What the server answers to raw bytes before it closes or pauses for long."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        for part in parts:
            connection.sendall(part)
        return read_reply(connection)


def read_reply(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += (got := connection.recv(65536))
        if not got:
            return data
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    )
    while len(body) < length and (got := connection.recv(65536)):
        body += got
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": "Hi"',
        b'{"inputs": NaN}',
        b'{"inputs": "Hi", "parameters": {"temperature": Infinity}}',
        b'{"inputs": "Hi", "parameters": {"temperature": 1e999}}',
        b'{"inputs": "\xff\xfe"}',
        b'{"inputs": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"[]",
        b"null",
        b'"text"',
        b'{"inputs": ' + b"9" * 50_000 + b"}",
        b'{"inputs": ["Hi"]}',
        b'{"inputs": null}',
        b'{"inputs": ""}',
        b'{"inputs": "Hi", "parameters": []}',
        b'{"inputs": "Hi", "unknown": 1}',
        b"{" + b",".join(b'"k%d":1' % i for i in range(100_000)) + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
def test_bad_body(http: httpx.Client, path: str, body: bytes) -> None:
    begun = time.monotonic()
    reply = http.post(path, content=body)
    assert reply.status_code == 422, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert "error" in reply.json()
    assert len(reply.content) < 1000
    assert time.monotonic() - begun < 2.0


def test_content_type_does_not_matter(http: httpx.Client) -> None:
    headers = {"content-type": "text/plain"}
    reply = http.post("/generate", content=b'{"inputs": "Hi"}', headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/generate"), ("POST", "/health")])
def test_wrong_method_is_a_json_error(http: httpx.Client, method: str, path: str) -> None:
    reply = http.request(method, path)
    assert reply.status_code == 405
    assert reply.json()["error_type"] == "method_not_allowed"


def test_unknown_route_is_a_json_error_in_its_dialect(http: httpx.Client) -> None:
    assert http.get("/nothing").json() == {"error": "Not Found", "error_type": "not_found"}
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"


def test_too_long_input(http: httpx.Client) -> None:
    reply = http.post("/generate", json={"inputs": "word " * 1000})
    assert reply.status_code == 422
    assert "256" in reply.json()["error"]


def test_large_body_is_refused_before_it_is_sent(server: Any) -> None:
    reply = exchange(server.port, HEAD + b"content-length: 50000000\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error_type"] == "payload_too_large"


def test_large_body_that_is_sent_gets_its_answer(http: httpx.Client) -> None:
    reply = http.post("/generate", content=b" " * 50_000_000)
    assert reply.status_code == 413


def test_large_chunked_body(server: Any) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    parts = [HEAD + b"transfer-encoding: chunked\r\n\r\n", *[chunk] * 32]
    assert exchange(server.port, *parts).startswith(b"HTTP/1.1 413 ")


def test_long_headers(server: Any) -> None:
    reply = exchange(server.port, HEAD + b"x: " + b"y" * 80_000)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error_type"] == "headers_too_large"


def test_no_http_at_all(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_request_id_is_returned(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "a-1"}).headers["x-request-id"] == "a-1"
    generated = http.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert generated != "a b"
    assert http.get("/nothing").headers["x-request-id"]


def test_slow_body_is_given_up(start_server: Callable[..., Any]) -> None:
    server = start_server(body_timeout=0.3)
    reply = exchange(server.port, HEAD + b"content-length: 20\r\n\r\n{")
    assert reply.startswith(b"HTTP/1.1 408 ")


def test_silent_and_slow_connections_are_closed(start_server: Callable[..., Any]) -> None:
    server = start_server(header_timeout=1.0)
    connections = []
    try:
        for number in range(1000):
            connection = socket.create_connection(("127.0.0.1", server.port), 10)
            if number % 2:
                connection.sendall(b"GET /health HT")
            connections.append(connection)
        with httpx.Client(base_url=server.url) as http:
            assert http.post("/generate", json={"inputs": "Hi"}).status_code == 200
        for connection in connections:
            connection.settimeout(10)
            assert connection.recv(1) == b""
    finally:
        for connection in connections:
            connection.close()
    assert httpx.post(f"{server.url}/generate", json={"inputs": "Hi"}).status_code == 200


def test_slow_headers_after_a_first_request(start_server: Callable[..., Any]) -> None:
    server = start_server(header_timeout=0.5)
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert read_reply(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /hea")
        assert connection.recv(1) == b""
