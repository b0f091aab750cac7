"""OpenAI's routes: shapes, parameters, errors."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from headrace.checkpoint.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"messages": MESSAGES, **fields})


def complete(http: httpx.Client, prompt: Any = "Hi", **fields: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"prompt": prompt, **fields})


def chunks(reply: httpx.Response) -> list[dict[str, Any]]:
    assert reply.status_code == 200, reply.text
    lines = [line for line in reply.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_chat(http: httpx.Client, text: str, engine: Any) -> None:
    reply = chat(http).json()
    assert reply["id"].startswith("chatcmpl-")
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "null-model"
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"
    usage = reply["usage"]
    assert usage["prompt_tokens"] == len(engine.submits[0].token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert engine.submits[0].sampling.do_sample


def test_the_template_frames_the_chat_once(
    http: httpx.Client, engine: Any, tokenizer: Tokenizer
) -> None:
    chat(http, messages=[{"role": "system", "content": "Be brief."}, *MESSAGES])
    ids = engine.submits[0].token_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_content_parts_are_joined(http: httpx.Client, engine: Any) -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    chat(http)
    chat(http, messages=[{"role": "user", "content": parts}])
    assert engine.submits[0].token_ids == engine.submits[1].token_ids


def test_chat_stream(http: httpx.Client, text: str) -> None:
    stream = chunks(chat(http, stream=True))
    assert len({chunk["id"] for chunk in stream}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in stream)
    choices = [chunk["choices"][0] for chunk in stream]
    assert "".join(choice["delta"]["content"] for choice in choices) == text
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * (
        len(choices) - 1
    )
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == "stop"
    assert "usage" not in stream[0]


def test_usage_chunk_comes_last(http: httpx.Client) -> None:
    stream = chunks(chat(http, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in stream[:-1])
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == len(stream) - 1


def test_several_choices_are_independent(http: httpx.Client, text: str, engine: Any) -> None:
    reply = chat(http, n=2, seed=5).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    seeds = [submit.sampling.seed for submit in engine.submits]
    assert seeds[0] == 5
    assert len(set(seeds)) == 2
    stream = chunks(chat(http, n=2, stream=True))
    for index in (0, 1):
        deltas = [
            chunk["choices"][0]["delta"]["content"]
            for chunk in stream
            if chunk["choices"][0]["index"] == index
        ]
        assert "".join(deltas) == text


def test_chat_logprobs(http: httpx.Client, text: str) -> None:
    for stream in (False, True):
        reply = chat(http, logprobs=True, top_logprobs=2, stream=stream)
        if stream:
            content = [
                entry for c in chunks(reply) for entry in c["choices"][0]["logprobs"]["content"]
            ]
        else:
            content = reply.json()["choices"][0]["logprobs"]["content"]
        joined = b"".join(bytes(entry["bytes"]) for entry in content[:-1])
        assert joined.decode() == text
        assert all(len(entry["top_logprobs"]) == 2 for entry in content)


def test_stop_string_is_left_out_and_held_back(http: httpx.Client) -> None:
    assert chat(http, stop="wörld").json()["choices"][0]["message"]["content"] == "Hello, "
    stream = chunks(chat(http, stop=["never", "wörld"], stream=True))
    assert "".join(c["choices"][0]["delta"]["content"] for c in stream) == "Hello, "
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"


def test_temperature_zero_is_greedy(http: httpx.Client, engine: Any) -> None:
    chat(http, temperature=0)
    complete(http, temperature=0.0)
    assert [submit.sampling.do_sample for submit in engine.submits] == [False, False]


def test_every_parameter_reaches_the_engine(http: httpx.Client, engine: Any) -> None:
    reply = chat(
        http,
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        logit_bias={"17": -100},
        seed=42,
        temperature=0.5,
        top_p=0.25,
        max_completion_tokens=4,
        top_k=3,
        min_new_tokens=2,
        ignore_eos=True,
        repetition_penalty=1.5,
        priority=-1,
        cache_salt="pepper",
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        model="tgi",
    )
    assert reply.status_code == 200, reply.text
    (submit,) = engine.submits
    sampling = submit.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert sampling.logit_bias == {17: -100.0}
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (42, 0.5, 0.25)
    assert (sampling.max_new_tokens, sampling.min_new_tokens) == (4, 2)
    assert (sampling.top_k, sampling.ignore_eos, sampling.repetition_penalty) == (3, True, 1.5)
    assert (submit.priority, submit.cache_salt) == (-1, "pepper")
    assert reply.json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"], [26843, 28], [[26843], [28, 29]]], ids=repr)
def test_prompts_in_all_shapes(http: httpx.Client, text: str, prompt: Any, engine: Any) -> None:
    reply = complete(http, prompt).json()
    assert reply["id"].startswith("cmpl-")
    count = 2 if isinstance(prompt[0], list) or (len(prompt) == 2 and prompt[0] == "Hi") else 1
    assert [choice["text"] for choice in reply["choices"]] == [text] * count
    assert [choice["index"] for choice in reply["choices"]] == list(range(count))
    if isinstance(prompt[0], list):
        assert [submit.token_ids for submit in engine.submits] == prompt


def test_echo_with_logprobs(http: httpx.Client) -> None:
    (choice,) = complete(http, "Hi there", echo=True, logprobs=1, max_tokens=2).json()["choices"]
    assert choice["text"] == "Hi thereHello,"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["Hi", " there", "Hello", ","]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1] == -1.0
    assert logprobs["text_offset"] == [0, 2, 8, 13]
    assert "Hello" in logprobs["top_logprobs"][2]


def test_bare_echo_scores_the_prompt(http: httpx.Client) -> None:
    (choice,) = complete(http, "Hi there", echo=True, logprobs=0, max_tokens=0).json()["choices"]
    assert choice["text"] == "Hi there"
    assert choice["logprobs"]["tokens"] == ["Hi", " there"]


def test_echo_in_a_stream_comes_first(http: httpx.Client, text: str) -> None:
    stream = chunks(complete(http, ["Hi", "Ho"], echo=True, stream=True))
    for index, prompt in enumerate(["Hi", "Ho"]):
        texts = [c["choices"][0]["text"] for c in stream if c["choices"][0]["index"] == index]
        assert texts[0] == prompt
        assert "".join(texts) == prompt + text


def test_best_of_returns_the_likelier(http: httpx.Client, engine: Any) -> None:
    reply = complete(http, best_of=2, logprobs=0, max_tokens=2).json()
    (choice,) = reply["choices"]
    assert len(engine.submits) == 2
    assert choice["logprobs"]["token_logprobs"] == [-1.0, -1.0]
    assert reply["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"n": 3}, "n"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 20}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "wat": 1}]}, "messages.0.wat"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": []}, "functions"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)
def test_refused_by_name(
    http: httpx.Client, engine: Any, fields: dict[str, Any], param: str
) -> None:
    reply = chat(http, **fields)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert engine.submits == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": [7] * 300}, "prompt"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"messages": MESSAGES}, "messages"),
    ],
)
def test_legacy_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    reply = http.post("/v1/completions", json={"prompt": "Hi", **fields})
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == param


def test_unknown_model_is_not_found(http: httpx.Client) -> None:
    assert chat(http, model="null-model").status_code == 200
    reply = chat(http, model="gpt-4o")
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "model_not_found"


def test_models(http: httpx.Client) -> None:
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "null-model"
    assert http.get("/v1/models/null-model").json() == model
    assert http.get("/v1/models/other").status_code == 404


def test_a_role_the_template_refuses(http: httpx.Client, start_server: Any) -> None:
    from dataclasses import replace

    from headrace.checkpoint.chat_template import ChatTemplate

    source = "{% if messages[0].role != 'user' %}{{ raise_exception('users only') }}{% endif %}x"
    server = start_server()
    service = server.app.state.service
    model = replace(service.model, chat_template=ChatTemplate({"default": source}, {}))
    service.encoder._model = model
    reply = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"messages": [{"role": "assistant", "content": "Hi"}]},
    )
    assert reply.status_code == 422
    assert "users only" in reply.json()["error"]["message"]
    assert reply.json()["error"]["code"] == "template_error"
