"""The clients that people use, unchanged, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import OverloadedError, ValidationError

MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def tgi(server: Any) -> InferenceClient:
    return InferenceClient(model=server.url, timeout=20)


def test_openai_chat(client: openai.OpenAI, text: str) -> None:
    reply = client.chat.completions.create(
        model="null-model", messages=MESSAGES, logprobs=True, top_logprobs=2, seed=1, n=2
    )
    assert [choice.message.content for choice in reply.choices] == [text] * 2
    assert reply.choices[0].logprobs.content[0].top_logprobs[0].token == "Hello"
    assert reply.usage.total_tokens > 0


def test_openai_chat_stream(client: openai.OpenAI, text: str) -> None:
    stream = client.chat.completions.create(
        model="null-model",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=300,
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1


def test_openai_chat_stream_helper(client: openai.OpenAI, text: str) -> None:
    with client.chat.completions.stream(model="null-model", messages=MESSAGES) as stream:
        message = stream.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", text)


def test_openai_completions(client: openai.OpenAI, text: str) -> None:
    reply = client.completions.create(
        model="null-model", prompt=["Hi", "Ho"], echo=True, logprobs=1
    )
    assert [choice.text for choice in reply.choices] == ["Hi" + text, "Ho" + text]
    assert reply.choices[0].logprobs.text_offset[:2] == [0, 2]
    stream = client.completions.create(model="null-model", prompt="Hi", stream=True, stop="One")
    assert "".join(chunk.choices[0].text for chunk in stream) == text.partition("One")[0]


def test_openai_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["null-model"]
    assert client.models.retrieve("null-model").owned_by == "headrace"


def test_openai_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(model="null-model", messages=MESSAGES, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError, match="tools"):
        client.chat.completions.create(
            model="null-model",
            messages=MESSAGES,
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )


def test_openai_sees_an_error_in_a_stream(client: openai.OpenAI, server: Any) -> None:
    server.engine.step_seconds = 0.05
    try:
        stream = client.completions.create(
            model="null-model",
            prompt="Hi",
            stream=True,
            extra_headers={"x-request-timeout": "0.2"},
            extra_body={"ignore_eos": True},
        )
        with pytest.raises(openai.APIError, match="not finished within"):
            list(stream)
    finally:
        server.engine.step_seconds = 0.0


def test_huggingface_text_generation(tgi: InferenceClient, text: str) -> None:
    # The client asks the route `/`, which repeats the prompt unless told otherwise, as in TGI.
    assert tgi.text_generation("Hi") == "Hi" + text
    assert tgi.text_generation("Hi", return_full_text=False) == text
    output = tgi.text_generation(
        "Hi",
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
        do_sample=True,
        seed=7,
        return_full_text=False,
    )
    assert output.generated_text == text
    assert output.details.finish_reason == "eos_token"
    assert output.details.seed == 7
    assert output.details.prefill[0].logprob is None
    assert output.details.tokens[0].text == "Hello"
    assert len(output.details.top_tokens[0]) == 2


def test_huggingface_text_generation_stream(tgi: InferenceClient, text: str) -> None:
    assert "".join(tgi.text_generation("Hi", stream=True)).startswith(text)
    last = list(tgi.text_generation("Hi", stream=True, details=True))[-1]
    assert last.generated_text == "Hi" + text
    assert last.details.input_length == 1


def test_huggingface_chat(tgi: InferenceClient, text: str) -> None:
    reply = tgi.chat_completion(MESSAGES, logprobs=True, top_logprobs=1, max_tokens=50)
    assert reply.choices[0].message.content == text
    stream = tgi.chat_completion(MESSAGES, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.prompt_tokens > 0


def test_huggingface_errors(tgi: InferenceClient, start_server: Any) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        tgi.text_generation("Hi", temperature=0.0, details=True)
    full = start_server(max_concurrent_requests=1)
    with pytest.raises(OverloadedError):
        InferenceClient(model=full.url).text_generation("Hi", best_of=2, do_sample=True)
