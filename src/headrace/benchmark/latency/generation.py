"""Greedy generation for a whole batch through the model runner, with the times of its tokens."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.backend import TimesCalls
from headrace.modeling.runner import ModelRunner, PendingStep, ScheduledTokens

Prompts = npt.NDArray[np.int32]

_FIRST_TOKEN_ID = 10
"""Ids below are control tokens of most vocabularies."""


_GREEDY = SamplingParams()


class Times(NamedTuple):
    """Seconds from the prompts on the host to tokens on the host."""

    first_token: float
    last_token: float


class BatchGenerator:
    """Generates for rows ``0 .. batch - 1``, as the engine's loop does without a scheduler.

    Args:
        runner: The model; its buffers hold the largest batch.
        most_in_flight: Steps launched before the oldest is waited for, as in the engine.
        seed: Of the prompts; every call draws fresh ones, so that no prefix repeats.
    """

    def __init__(self, runner: ModelRunner, most_in_flight: int, seed: int) -> None:
        self._runner = runner
        self._most_in_flight = most_in_flight
        self._random = np.random.default_rng(seed)

    @property
    def timed_programs(self) -> list[TimesCalls]:
        """What computes a step, where it can time its calls."""
        return self._runner.timed_programs

    def prepare(self, batch: int, length: int, sampling: SamplingParams = _GREEDY) -> None:
        """Give every row blocks for ``length`` tokens and a sampler, greedy unless told."""
        blocks = -(-length // self._runner.limits.block_size)
        for row in range(batch):
            self._runner.set_row(row, sampling, [], ())
            self._runner.set_blocks(row, 0, list(range(row * blocks, (row + 1) * blocks)))

    def generate(self, batch: int, context: int, new_tokens: int) -> Times:
        """Generate so many tokens after fresh random prompts of ``context`` ids."""
        prompts = self._random.integers(
            _FIRST_TOKEN_ID, self._runner.vocab_size, (batch, context), dtype=np.int32
        )
        steps = prefill_steps(prompts, self._runner.limits.max_tokens)
        pending: deque[PendingStep] = deque()
        started = time.perf_counter()
        for step in steps:
            self._wait(pending, self._most_in_flight - 1)
            pending.append(self._runner.launch(step))
        prefills, first_token = len(pending), 0.0
        for index in range(new_tokens - 1):
            while len(pending) >= self._most_in_flight:
                pending.popleft().wait()
                prefills -= 1
                if prefills == 0:
                    first_token = time.perf_counter() - started
            position = context + index
            pending.append(
                self._runner.launch(
                    [ScheduledTokens(row, position, None, samples=True) for row in range(batch)]
                )
            )
        while pending:
            pending.popleft().wait()
            prefills -= 1
            if prefills == 0:
                first_token = time.perf_counter() - started
        return Times(first_token, time.perf_counter() - started)

    @staticmethod
    def _wait(pending: deque[PendingStep], most: int) -> None:
        while len(pending) > most:
            pending.popleft().wait()


def prefill_steps(prompts: Prompts, token_budget: int) -> list[list[ScheduledTokens]]:
    """Prompts in order, split where needed, in steps of at most ``token_budget`` tokens."""
    steps: list[list[ScheduledTokens]] = []
    left = 0
    for row, prompt in enumerate(prompts):
        start = 0
        while start < len(prompt):
            if left == 0:
                steps.append([])
                left = token_budget
            end = min(len(prompt), start + left)
            steps[-1].append(
                ScheduledTokens(row, start, prompt[start:end], samples=end == len(prompt))
            )
            left -= end - start
            start = end
    return steps
