"""Perplexity of the built-in model on a real text, as served; ``benchmarks/perplexity.py`` reads
more of the same text (51,200 tokens) and records what it finds."""

from __future__ import annotations

import math
from pydoc_data import topics

from headrace import LLM, SamplingParams
from headrace.checkpoint.resolve import resolve

WINDOWS, LENGTH = 4, 384


def perplexity(text: str, **settings: object) -> float:
    llm = LLM(max_total_tokens=LENGTH + 1, prefix_cache=False, **settings)
    ids = resolve(None).load_tokenizer().encode(text)
    stride = len(ids) // WINDOWS
    windows = [ids[i * stride : i * stride + LENGTH] for i in range(WINDOWS)]
    params = SamplingParams(max_new_tokens=1, decoder_input_details=True)
    generations = llm.generate(windows, params, progress=False)
    values = [value for one in generations for value in one.prompt_logprobs or []]
    assert len(values) == WINDOWS * (LENGTH - 1)
    return math.exp(-math.fsum(values) / len(values))


def test_packed_and_bf16_weights_keep_the_perplexity_of_float32() -> None:
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))[:100_000]
    exact = perplexity(text, dtype="float32", packed_weights=False)
    assert 5 < exact < 40
    for packed in (True, False):
        assert abs(perplexity(text, packed_weights=packed) / exact - 1) < 0.005
