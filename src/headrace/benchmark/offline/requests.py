"""What is generated: random ids of random lengths, or conversations in ShareGPT's format."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from headrace.benchmark.serving.workload import ConversationWorkload
from headrace.link.errors import ConfigurationError

_FIRST_TOKEN_ID = 10
"""Ids below are control tokens of most vocabularies."""


class Lengths(NamedTuple):
    """A range of lengths in tokens, both ends included."""

    lowest: int
    highest: int

    def __str__(self) -> str:
        return str(self.lowest) if self.lowest == self.highest else f"{self.lowest}:{self.highest}"


class OfflineRequest(NamedTuple):
    """A prompt's ids and how many tokens are generated after it."""

    token_ids: list[int]
    new_tokens: int

    def length(self) -> int:
        """Tokens of the whole sequence."""
        return len(self.token_ids) + self.new_tokens


def random_requests(
    seed: int, count: int, input_tokens: Lengths, output_tokens: Lengths, vocabulary: int
) -> list[OfflineRequest]:
    """Prompts of random ids.

    One stream of Python's ``random.Random(seed)``, so that any system can be given the same: for
    each prompt first ``randint`` of its length, then so many ``randrange(10, vocabulary)``; after
    all prompts ``randint`` of each output's length.
    """
    stream = random.Random(seed)
    prompts = [
        [
            stream.randrange(_FIRST_TOKEN_ID, vocabulary)
            for _ in range(stream.randint(*input_tokens))
        ]
        for _ in range(count)
    ]
    return [OfflineRequest(prompt, stream.randint(*output_tokens)) for prompt in prompts]


def conversation_requests(
    seed: int,
    count: int,
    path: Path,
    encode: Callable[[str], list[int]],
    longest_output: int | None,
) -> list[OfflineRequest]:
    """First turns of conversations in random order, as long answers as were given there.

    Args:
        path: As ``ConversationWorkload`` reads it.
        longest_output: Answers are cut to so many tokens; ``None``: as given.

    Raises:
        ConfigurationError: as ``ConversationWorkload``.
    """
    source = ConversationWorkload(seed, path, lambda text: len(encode(text)), longest_output)
    asks = [source.next() for _ in range(count)]
    return [OfflineRequest(encode(str(ask.prompt)), ask.new_tokens) for ask in asks]


def check_lengths(requests: Sequence[OfflineRequest], most: int, whose: str) -> None:
    """Refuse requests that are longer than a sequence may be.

    Args:
        most: Tokens of prompt and output together.
        whose: What has that limit, for people.

    Raises:
        ConfigurationError: names the longest.
    """
    longest = max(requests, key=OfflineRequest.length)
    if longest.length() > most:
        raise ConfigurationError(
            f"a prompt of {len(longest.token_ids)} tokens and {longest.new_tokens} new ones make "
            f"{longest.length()}; {whose} has {most} positions"
        )
