"""The OpenAPI document: what it promises is what is answered, and no input makes a 5xx."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from pydantic import TypeAdapter
from schemathesis import GenerationMode

from headrace.transport.openai.schema import (
    ChatCompletion,
    Completion,
    ModelsInfo,
    OpenAIError,
)
from headrace.transport.tgi.schema import (
    ChatTokenizeResponse,
    ErrorResponse,
    GenerateResponse,
    Info,
    SimpleToken,
)

MESSAGES = [{"role": "user", "content": "Hi"}]
DETAILS = {"details": True, "decoder_input_details": True, "top_n_tokens": 1}
REPLIES: list[tuple[str, Any, Any]] = [
    ("/generate", {"inputs": "Hi"}, GenerateResponse),
    ("/generate", {"inputs": "Hi", "parameters": DETAILS}, GenerateResponse),
    (
        "/generate",
        {"inputs": "Hi", "parameters": {**DETAILS, "best_of": 2, "do_sample": True}},
        GenerateResponse,
    ),
    ("/generate", {"inputs": ""}, ErrorResponse),
    ("/", {"inputs": "Hi"}, list[GenerateResponse]),
    ("/invocations", {"inputs": "Hi"}, GenerateResponse),
    ("/tokenize", {"inputs": "Hi"}, list[SimpleToken]),
    ("/chat_tokenize", {"messages": MESSAGES}, ChatTokenizeResponse),
    ("/v1/chat/completions", {"messages": MESSAGES}, ChatCompletion),
    (
        "/v1/chat/completions",
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1},
        ChatCompletion,
    ),
    ("/v1/chat/completions", {"messages": []}, OpenAIError),
    ("/v1/completions", {"prompt": "Hi", "logprobs": 1, "echo": True}, Completion),
    ("/info", None, Info),
    ("/v1/models", None, ModelsInfo),
]


@pytest.mark.parametrize(("path", "body", "model"), REPLIES)
def test_replies_are_as_documented(http: httpx.Client, path: str, body: Any, model: Any) -> None:
    reply = http.get(path) if body is None else http.post(path, json=body)
    TypeAdapter(model).validate_json(reply.content, strict=True)


def test_bounds_are_documented(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    fields = document["components"]["schemas"]["GenerateParameters"]["properties"]
    assert fields["top_p"]["anyOf"][0] == {
        "type": "number",
        "exclusiveMinimum": 0.0,
        "maximum": 1.0,
    }
    assert fields["frequency_penalty"]["anyOf"][0]["minimum"] == -2.0
    for path in ("/generate", "/v1/chat/completions", "/v1/completions", "/tokenize"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        name = body["schema"]["$ref"].rpartition("/")[2]
        assert name in document["components"]["schemas"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_fuzzing_finds_no_server_error(server: Any, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    seen: set[int] = set()
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            # It takes nothing that could be wrong.
            continue
        cases = operation.as_strategy(generation_mode=mode)

        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def attempt(case: Any) -> None:
            reply = case.call(timeout=20)
            seen.add(reply.status_code)
            assert reply.status_code < 500, (case.as_curl_command(), reply.text)

        attempt()
    assert 422 in seen
    assert 200 in seen or mode is GenerationMode.NEGATIVE
