"""A load that reaches every limit of an engine at once, and what it reached.

The sampler's every feature, the longest prompt and the longest sequence, all rows, a full step, a
full KV cache with preemptions, prompt log-probabilities of whole prompts, adapters where there are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from headrace.engine.core import Engine
from headrace.link.messages import EngineReady, Submit
from headrace.link.sampling import SamplingParams

SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"logprobs": True, "top_n_tokens": 20},
    {"do_sample": True, "temperature": 1.3},
    {"do_sample": True, "top_k": 7},
    {"do_sample": True, "top_p": 0.95, "logprobs": True},
    {"do_sample": True, "typical_p": 0.5},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.2},
    {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "typical_p": 0.9,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "logprobs": True,
        "top_n_tokens": 5,
    },
    {"min_new_tokens": 4, "logit_bias": {5: 3.0, 9: -100.0}},
    {"decoder_input_details": True, "logprobs": True},
)


@dataclass
class Reached:
    """The largest of each that the load came to."""

    rows: int = 0
    tokens: int = 0
    length: int = 0
    preemptions: int = 0
    finished: int = 0
    prompt_logprobs: int = 0


def requests(ready: EngineReady, rng: random.Random, first_id: int = 1) -> list[Submit]:
    """More than all rows at once; the first are the longest that the engine permits."""
    submits = []

    def add(length: int, new_tokens: int, number: int) -> None:
        params = SamplingParams(
            max_new_tokens=new_tokens, ignore_eos=True, seed=rng.randrange(2**64),
            **SAMPLINGS[number % len(SAMPLINGS)],
        )  # fmt: skip
        adapters = [None, *ready.adapters]
        submits.append(
            Submit(
                request_id=first_id + len(submits),
                token_ids=[rng.randrange(10, ready.vocab_size) for _ in range(length)],
                sampling=params,
                adapter=adapters[len(submits) % len(adapters)],
            )
        )

    total = min(ready.max_total_tokens, ready.max_batch_total_tokens)
    for number in range(len(SAMPLINGS)):
        add(min(ready.max_input_tokens, total - 1), 1, number)
    add(total - 24, 24, 7)
    # Short prompts that all find a row before the first ends; then twice what the cache holds.
    share = ready.max_batch_total_tokens // ready.max_batch_size
    for number in range(ready.max_batch_size):
        add(rng.randint(1, 8), share // 2, number)
    for number in range(2 * ready.max_batch_size):
        add(rng.randint(share // 2, share), share, number)
    return submits


def drive(engine: Engine, submits: list[Submit]) -> Reached:
    """Serve them all at once."""
    reached = Reached()
    before = engine.stats()
    lengths = {s.request_id: len(s.token_ids) for s in submits}
    for submit in submits:
        engine.submit(submit)
    while engine.has_work:
        events = engine.step()
        assert not events.failures, events.failures[0]
        stats = engine.stats()
        reached.rows = max(reached.rows, stats.running)
        reached.tokens = max(reached.tokens, stats.batch_tokens)
        for output in events.outputs:
            lengths[output.request_id] += len(output.token_ids)
            reached.length = max(reached.length, lengths[output.request_id])
            if output.prompt_logprobs is not None:
                reached.prompt_logprobs = max(reached.prompt_logprobs, len(output.prompt_logprobs))
            if output.finish_reason is not None:
                reached.finished += 1
    reached.preemptions = engine.stats().preemptions_total - before.preemptions_total
    return reached


def short_of(reached: Reached, ready: EngineReady, count: int, token_budget: int) -> list[str]:
    """Limits that the load did not reach; none is what is wanted."""
    total = min(ready.max_total_tokens, ready.max_batch_total_tokens)
    wanted = {
        "rows": (reached.rows, ready.max_batch_size),
        "tokens of a step": (reached.tokens, token_budget),
        "length": (reached.length, total),
        "preemptions": (min(reached.preemptions, 1), 1),
        "finished": (reached.finished, count),
        "prompt logprobs": (reached.prompt_logprobs, min(ready.max_input_tokens, total - 1) - 1),
    }
    return [f"{name}: {got} of {want}" for name, (got, want) in wanted.items() if got < want]
