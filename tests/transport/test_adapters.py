"""Adapters over HTTP: how a request names one, and where its name shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

NAMES = ["poet", "law/yer"]


@pytest.fixture
def adapted(engine: Any, server: Any) -> Iterator[Any]:
    """The engine, ready once more with adapters; without them for the next test."""
    ready = server.client.require_ready()
    server.call(lambda: server.client.receive(msgspec.structs.replace(ready, adapters=list(NAMES))))
    yield engine
    server.call(lambda: server.client.receive(ready))


def chat(http: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3} | fields
    return http.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("adapter", [*NAMES, None])
def test_adapter_id_chooses_on_tgi_routes(
    http: httpx.Client, adapted: Any, adapter: str | None
) -> None:
    body = {"inputs": "Hi", "parameters": {"adapter_id": adapter, "max_new_tokens": 2}}
    for path in ("/generate", "/generate_stream", "/", "/invocations"):
        assert http.post(path, json=body).status_code == 200
    assert [submit.adapter for submit in adapted.submits] == [adapter] * 4


def test_model_chooses_on_openai_routes_and_is_named_in_replies(
    http: httpx.Client, adapted: Any
) -> None:
    assert chat(http, model="poet").json()["model"] == "poet"
    assert chat(http).json()["model"] == "null-model"
    body = {"prompt": ["a", "b"], "model": "law/yer", "max_tokens": 2}
    assert http.post("/v1/completions", json=body).json()["model"] == "law/yer"
    chosen = [submit.adapter for submit in adapted.submits]
    assert chosen == ["poet", None, "law/yer", "law/yer"]
    events = chat(http, model="poet", stream=True).text.split("\n\n")
    chunks = [json.loads(event[5:]) for event in events if event and "[DONE]" not in event]
    assert chunks
    assert {chunk["model"] for chunk in chunks} == {"poet"}


def test_models_lists_adapters_under_their_base(http: httpx.Client, adapted: Any) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in listed] == [
        ("null-model", None),
        ("poet", "null-model"),
        ("law/yer", "null-model"),
    ]
    assert http.get("/v1/models/law/yer").json()["parent"] == "null-model"


def test_an_unknown_adapter_is_refused_with_those_that_exist(
    http: httpx.Client, adapted: Any
) -> None:
    reply = http.post("/generate", json={"inputs": "Hi", "parameters": {"adapter_id": "painter"}})
    assert reply.status_code == 422
    assert reply.json()["error"] == (
        "`adapter_id` must be one of the served adapters `poet`, `law/yer`, got 'painter'"
    )
    reply = chat(http, model="painter")
    assert reply.status_code == 404
    message = "`null-model`, `poet` and `law/yer` are"
    assert message in reply.json()["error"]["message"]
    assert adapted.submits == []


def test_metrics_name_the_adapter(http: httpx.Client, adapted: Any) -> None:
    def tokens() -> float:
        name = 'headrace_adapter_generated_tokens_total{adapter="poet"} '
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = tokens()
    assert chat(http, model="poet").json()["usage"]["completion_tokens"] == 3
    assert chat(http).status_code == 200
    assert tokens() == before + 3
