"""The clients that users have, unchanged, against a real server with a real model."""

from __future__ import annotations

import math

import openai
import pytest
from huggingface_hub import InferenceClient

CHAT = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


@pytest.fixture
def hub_client(server) -> InferenceClient:
    return InferenceClient(base_url=server.url, timeout=60)


def test_openai_chat_and_its_stream_give_the_same_text(client) -> None:
    model = client.models.list().data[0].id
    whole = client.chat.completions.create(
        model=model, messages=CHAT, max_tokens=24, temperature=0, logprobs=True, top_logprobs=3
    )
    text = whole.choices[0].message.content
    assert text
    assert whole.id
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content)
    for entry in whole.choices[0].logprobs.content:
        assert -math.inf < entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the most likely token"
    stream = client.chat.completions.create(
        model=model,
        messages=CHAT,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_openai_completions_n_stop_seed_and_echo(client) -> None:
    model = client.models.list().data[0].id
    sampled = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=16, n=2, temperature=1.0, seed=7
    )
    again = client.completions.create(
        model=model, prompt="Once upon a time", max_tokens=16, n=2, temperature=1.0, seed=7
    )
    texts = [choice.text for choice in sampled.choices]
    assert len(texts) == 2
    assert texts[0] != texts[1]
    assert [choice.text for choice in again.choices] == texts
    stopped = client.completions.create(
        model=model, prompt="1, 2, 3, 4, 5, 6,", max_tokens=32, temperature=0, stop=[" 9"]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert " 9" not in stopped.choices[0].text
    echoed = client.completions.create(
        model=model, prompt="The sky is", max_tokens=1, temperature=0, echo=True, logprobs=1
    )
    assert echoed.choices[0].text.startswith("The sky is")
    assert echoed.choices[0].logprobs.token_logprobs[0] is None


def test_openai_refuses_what_it_cannot_do_by_name(client) -> None:
    model = client.models.list().data[0].id
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(
            model=model, messages=CHAT, response_format={"type": "json_object"}
        )
    assert "response_format" in str(refused.value)
    with pytest.raises(openai.UnprocessableEntityError) as unknown:
        client.chat.completions.create(model=model, messages=CHAT, extra_body={"top_z": 1})
    assert "top_z" in str(unknown.value)


def test_hub_client_text_generation_with_details_and_stream(hub_client) -> None:
    whole = {"max_new_tokens": 8, "details": True, "return_full_text": False}
    details = hub_client.text_generation("The sky is", decoder_input_details=True, **whole)
    assert details.details.generated_tokens == 8
    assert details.details.finish_reason == "length"
    assert details.details.prefill[0].text
    assert details.details.prefill[0].logprob is None
    assert all(token.logprob <= 0 for token in details.details.tokens)
    assert "".join(token.text for token in details.details.tokens) == details.generated_text
    events = list(hub_client.text_generation("The sky is", stream=True, **whole))
    assert [event.index for event in events] == list(range(1, 9))
    assert "".join(event.token.text for event in events) == details.generated_text
    assert events[-1].generated_text == details.generated_text
    assert events[-1].details.finish_reason == "length"


def test_hub_client_chat_completion(hub_client) -> None:
    whole = hub_client.chat_completion(CHAT, max_tokens=16, temperature=0.0)
    streamed = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in hub_client.chat_completion(CHAT, max_tokens=16, temperature=0.0, stream=True)
        if chunk.choices
    )
    assert whole.choices[0].message.content == streamed


def test_a_seed_repeats_a_request(hub_client) -> None:
    texts = {
        hub_client.text_generation(
            "A long time ago", max_new_tokens=24, do_sample=True, seed=11, temperature=1.2
        )
        for _ in range(3)
    }
    assert len(texts) == 1
    other = hub_client.text_generation(
        "A long time ago", max_new_tokens=24, do_sample=True, seed=12, temperature=1.2
    )
    assert other not in texts
