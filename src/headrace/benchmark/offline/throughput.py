"""Generate for all requests at once, several times, and turn the times into rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from headrace import LLM, SamplingParams
from headrace.benchmark.offline.requests import OfflineRequest
from headrace.benchmark.record import Row, median_row
from headrace.link.errors import HeadraceError


@dataclass(frozen=True, slots=True)
class Pass:
    """One generation of all requests.

    Attributes:
        seconds: From the call to its return, texts included.
        steps: Of the engine.
        preemptions: Sequences that lost their KV blocks and were computed again.
    """

    seconds: float
    steps: int
    preemptions: int


def generate_all(llm: LLM, requests: Sequence[OfflineRequest], *, progress: bool) -> Pass:
    """Time one greedy generation of every request, end-of-sequence ids ignored.

    Raises:
        HeadraceError: a request brought another number of tokens than it asked for.
    """
    prompts = [request.token_ids for request in requests]
    params = [
        SamplingParams(max_new_tokens=request.new_tokens, ignore_eos=True) for request in requests
    ]
    before = llm.stats()
    started = time.perf_counter()
    generations = llm.generate(prompts, params, progress=progress)
    seconds = time.perf_counter() - started
    after = llm.stats()
    for number, (request, generation) in enumerate(zip(requests, generations, strict=True)):
        if len(generation.token_ids) != request.new_tokens:
            raise HeadraceError(
                f"request {number} asked for {request.new_tokens} tokens and brought "
                f"{len(generation.token_ids)}"
            )
    return Pass(
        seconds,
        after.steps_total - before.steps_total,
        after.preemptions_total - before.preemptions_total,
    )


def throughput_rows(requests: Sequence[OfflineRequest], passes: Sequence[Pass]) -> list[Row]:
    """Rows of a record; every pass is a sample."""
    tokens_in = sum(len(request.token_ids) for request in requests)
    tokens_out = sum(request.new_tokens for request in requests)
    seconds = [one.seconds for one in passes]

    def rate(count: int) -> list[float]:
        return [count / one for one in seconds]

    return [
        median_row("output_tokens_per_s", rate(tokens_out), "1/s"),
        median_row("total_tokens_per_s", rate(tokens_in + tokens_out), "1/s"),
        median_row("requests_per_s", rate(len(requests)), "1/s"),
        median_row("generate_all_s", seconds, "s"),
        median_row("engine_steps", [float(one.steps) for one in passes], "1"),
        median_row("preemptions", [float(one.preemptions) for one in passes], "1"),
    ]
