"""TGI's own routes: shapes, parameters, headers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from headrace.checkpoint.tokenizer import Tokenizer


def events(body: str) -> list[dict[str, Any]]:
    lines = [line for line in body.split("\n\n") if line]
    assert all(line.startswith("data:") for line in lines)
    return [json.loads(line.removeprefix("data:")) for line in lines]


def generate(http: httpx.Client, path: str = "/generate", **parameters: Any) -> httpx.Response:
    return http.post(path, json={"inputs": "Hi", "parameters": parameters})


def test_generate_is_only_the_text_unless_details_are_asked_for(
    http: httpx.Client, text: str
) -> None:
    assert generate(http).json() == {"generated_text": text}


def test_details_name_every_token(http: httpx.Client, text: str, tokenizer: Tokenizer) -> None:
    reply = generate(http, details=True, decoder_input_details=True, top_n_tokens=2).json()
    details = reply["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len(details["tokens"]) == len(details["top_tokens"])
    assert details["seed"] is None
    assert [token["special"] for token in details["tokens"]] == [False] * (
        len(details["tokens"]) - 1
    ) + [True]
    assert "".join(t["text"] for t in details["tokens"] if not t["special"]) == text
    assert [len(top) for top in details["top_tokens"]] == [2] * len(details["tokens"])
    ids = tokenizer.encode("Hi")
    assert [token["id"] for token in details["prefill"]] == ids
    assert details["prefill"][0]["logprob"] is None


def test_headers_carry_the_figures(http: httpx.Client) -> None:
    headers = generate(http, max_new_tokens=3).headers
    for name in (
        "x-compute-type",
        "x-compute-time",
        "x-compute-characters",
        "x-total-time",
        "x-validation-time",
        "x-queue-time",
        "x-inference-time",
        "x-time-per-token",
        "x-prompt-tokens",
        "x-generated-tokens",
    ):
        assert name in headers, name
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-compute-characters"] == "2"


def test_stream_has_one_event_for_each_token(http: httpx.Client, text: str) -> None:
    reply = generate(http, "/generate_stream", details=True, seed=3, do_sample=True)
    assert reply.headers["content-type"] == "text/event-stream"
    stream = events(reply.text)
    assert [event["index"] for event in stream] == list(range(1, len(stream) + 1))
    assert all(event["generated_text"] is None for event in stream[:-1])
    assert all(event["details"] is None for event in stream[:-1])
    last = stream[-1]
    assert last["generated_text"] == text
    assert last["details"] == {
        "finish_reason": "eos_token",
        "generated_tokens": len(stream),
        "seed": 3,
        "input_length": 1,
    }
    tokens = [event["token"] for event in stream]
    assert "".join(t["text"] for t in tokens if not t["special"]) == text
    assert all(isinstance(token["logprob"], float) for token in tokens)
    assert "top_tokens" not in last


def test_stream_never_emits_half_a_character(http: httpx.Client) -> None:
    stream = events(generate(http, "/generate_stream").text)
    assert all("\ufffd" not in event["token"]["text"] for event in stream)


def test_stop_string_across_tokens_stays_in_the_text(http: httpx.Client, engine: Any) -> None:
    reply = generate(http, details=True, stop=["wörl"]).json()
    assert reply["generated_text"] == "Hello, wörl"
    assert reply["details"]["finish_reason"] == "stop_sequence"


def test_stop_string_frees_the_engine(server: Any, http: httpx.Client, engine: Any) -> None:
    engine.step_seconds = 0.05
    generate(http, stop=["Hello"])
    engine.step_seconds = 0.0
    server.wait(lambda: engine.aborted == {engine.submits[0].request_id})


def test_root_answers_in_a_list_and_repeats_the_prompt(http: httpx.Client, text: str) -> None:
    assert http.post("/", json={"inputs": "Hi"}).json() == [{"generated_text": "Hi" + text}]
    bare = http.post("/", json={"inputs": "Hi", "parameters": {"return_full_text": False}})
    assert bare.json() == [{"generated_text": text}]
    streamed = http.post("/", json={"inputs": "Hi", "stream": True})
    assert events(streamed.text)[-1]["generated_text"] == "Hi" + text


def test_best_of_returns_the_likelier_and_shows_the_other(http: httpx.Client, engine: Any) -> None:
    reply = generate(http, best_of=2, do_sample=True, seed=11, details=True, max_new_tokens=2)
    details = reply.json()["details"]
    assert len(engine.submits) == 2
    assert len({submit.sampling.seed for submit in engine.submits}) == 2
    (other,) = details["best_of_sequences"]
    mean = lambda tokens: sum(token["logprob"] for token in tokens)  # noqa: E731
    assert mean(details["tokens"]) > mean(other["tokens"])


def test_every_parameter_reaches_the_engine(http: httpx.Client, engine: Any) -> None:
    parameters = {
        "temperature": 0.5,
        "repetition_penalty": 1.25,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "top_k": 7,
        "top_p": 1.0,
        "typical_p": 0.75,
        "max_new_tokens": 5,
        "min_new_tokens": 2,
        "seed": 42,
        "top_n_tokens": 3,
        "ignore_eos": True,
        "logit_bias": {"17": -3.5},
    }
    assert generate(http, priority=4, cache_salt="pepper", **parameters).status_code == 200
    (submit,) = engine.submits
    expected = {**parameters, "logit_bias": {17: -3.5}, "do_sample": True}
    for name, value in expected.items():
        assert getattr(submit.sampling, name) == value, name
    assert (submit.priority, submit.cache_salt) == (4, "pepper")


def test_truncate_keeps_the_last_tokens(
    http: httpx.Client, engine: Any, tokenizer: Tokenizer
) -> None:
    body = {"inputs": "one two three four", "parameters": {"truncate": 2}}
    assert http.post("/generate", json=body).status_code == 200
    assert engine.submits[0].token_ids == tokenizer.encode("one two three four")[-2:]


def test_null_means_absent_and_length_is_what_fits(http: httpx.Client, engine: Any) -> None:
    nothing = dict.fromkeys(
        ("temperature", "top_p", "top_k", "seed", "stop", "grammar", "adapter_id", "best_of")
    )
    assert generate(http, **nothing, max_new_tokens=None).status_code == 200
    sampling = engine.submits[0].sampling
    assert not sampling.do_sample
    assert sampling.max_new_tokens == 512 - 1


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10**6}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"best_of": 3, "do_sample": True}, "best_of"),
        ({"best_of": 2}, "best_of"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a" * 5000]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": 10_000}, "truncate"),
        ({"top_n_tokens": 6}, "top_n_tokens"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"priority": 1000}, "priority"),
        ({"logit_bias": {"-3": 1.0}}, "logit_bias"),
        ({"logit_bias": {"99999": 1.0}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"grammar": {"type": "json", "value": {}}}, "grammar"),
        ({"adapter_id": "mine"}, "adapter_id"),
        ({"watermark": True}, "watermark"),
        ({"temprature": 1.0}, "temprature"),
    ],
)
def test_refused_by_name(
    http: httpx.Client, engine: Any, parameters: dict[str, Any], field: str
) -> None:
    reply = generate(http, **parameters)
    assert reply.status_code == 422, reply.text
    error = reply.json()
    assert set(error) == {"error", "error_type"}
    assert error["error_type"] == "validation"
    assert field in error["error"]
    assert len(error["error"]) < 400
    assert engine.submits == []


@pytest.mark.parametrize(
    "parameters", [{"best_of": 2, "do_sample": True}, {"decoder_input_details": True}]
)
def test_not_while_streaming(http: httpx.Client, parameters: dict[str, Any]) -> None:
    reply = generate(http, "/generate_stream", **parameters)
    assert reply.status_code == 422
    assert next(iter(parameters)) in reply.json()["error"]


def test_tokenize_covers_the_text(http: httpx.Client) -> None:
    text = "Hello wörld 🌍"
    spans = http.post("/tokenize", json={"inputs": text}).json()
    assert all(set(span) == {"id", "text", "start", "stop"} for span in spans)
    assert all(text[span["start"] : span["stop"]] == span["text"] for span in spans)
    assert spans[-1]["stop"] == len(text)


def test_chat_tokenize_shows_the_template(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi there"}]}
    reply = http.post("/chat_tokenize", json=body).json()
    assert set(reply) == {"tokenize_response", "templated_text"}
    assert "Hi there" in reply["templated_text"]
    assert reply["tokenize_response"][-1]["stop"] == len(reply["templated_text"])


def test_invocations_dispatches_by_field(http: httpx.Client, text: str) -> None:
    generated = http.post("/invocations", json={"inputs": "Hi"}).json()
    assert generated == {"generated_text": "Hi" + text}
    messages = [{"role": "user", "content": "Hi"}]
    chat = http.post("/invocations", json={"messages": messages}).json()
    assert chat["object"] == "chat.completion"
    completion = http.post("/invocations", json={"prompt": "Hi"}).json()
    assert completion["object"] == "text_completion"
    assert http.post("/invocations", json={}).status_code == 422
