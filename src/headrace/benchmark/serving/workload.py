"""What is asked: random ids, shared prefixes, conversations in ShareGPT's format; by a seed."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from headrace.benchmark.serving.target import Target
from headrace.link.errors import ConfigurationError

Prompt = str | list[int]

# Words that are one token each, with the space before them, in most vocabularies.
_WORDS = (
    "the", "of", "and", "to", "in", "that", "is", "was", "he", "for", "it", "with", "as",
    "his", "on", "be", "at", "by", "had", "not", "are", "but", "from", "or", "have", "an",
    "they", "which", "one", "you", "were", "all", "her", "she", "there", "would", "their",
    "we", "him", "been", "has", "when", "who", "will", "no", "more", "if", "out", "so",
    "up", "said", "what", "its", "about", "than", "into", "them", "can", "only", "other",
    "time", "new", "some", "could",
)  # fmt: skip
_CHARACTERS_PER_TOKEN = 4
_FEWEST_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt and how many tokens are wanted."""

    prompt: Prompt
    new_tokens: int


class Workload(ABC):
    """An endless source of requests.

    Attributes:
        name: As records name it.
        longest: Most tokens of prompt and output together.
    """

    name: str
    longest: int

    @abstractmethod
    def next(self) -> Ask:
        """The next request."""


class RandomWorkload(Workload):
    """Prompts of random ids, or of random words where the API takes text only.

    Args:
        input_tokens: Of each prompt, its prefix included; words count as one token each.
        output_tokens: Of each answer.
        spread: Lengths are uniform between (1 - spread) and (1 + spread) times these.
        prefix_tokens: Tokens that the prompts of a group have in common at their beginning.
        prefix_groups: Number of different prefixes; each request takes one at random.
        token_ids: Lowest and highest id; ``None``: words.
    """

    def __init__(
        self,
        seed: int,
        input_tokens: int,
        output_tokens: int,
        *,
        spread: float = 0.0,
        prefix_tokens: int = 0,
        prefix_groups: int = 1,
        token_ids: tuple[int, int] | None = None,
    ) -> None:
        if prefix_tokens >= input_tokens:
            raise ConfigurationError(
                f"--prefix-tokens {prefix_tokens} must be below --input-tokens {input_tokens}"
            )
        self.name = "prefix" if prefix_tokens else "random"
        self._random = random.Random(seed)
        self._input = input_tokens
        self._output = output_tokens
        self._spread = spread
        self._token_ids = token_ids
        self._prefixes = [self._tokens(prefix_tokens) for _ in range(prefix_groups)]
        self.longest = self._highest(input_tokens) + self._highest(output_tokens)

    def next(self) -> Ask:
        """Fresh random tokens after one of the prefixes."""
        prefix = self._random.choice(self._prefixes)
        own = max(1, self._length(self._input) - len(prefix))
        tokens = prefix + self._tokens(own)
        prompt = tokens if self._token_ids else " ".join(map(str, tokens))
        return Ask(prompt, self._length(self._output))

    def _tokens(self, count: int) -> list[Any]:
        if self._token_ids is None:
            return self._random.choices(_WORDS, k=count)
        low, high = self._token_ids
        span = high - low + 1
        return [low + int(span * self._random.random()) for _ in range(count)]

    def _highest(self, length: int) -> int:
        return int(length * (1 + self._spread))

    def _length(self, mean: int) -> int:
        if not self._spread:
            return mean
        lowest = max(1, round(mean * (1 - self._spread)))
        return self._random.randint(lowest, self._highest(mean))


class ConversationWorkload(Workload):
    """First turns of conversations in ShareGPT's format, as long answers as were given there.

    Args:
        path: A JSON list of ``{"conversations": [{"from": "human", "value": …}, {"from": "gpt",
            "value": …}, …]}``.
        count_tokens: Length of a text; ``None``: a token for every four characters.
        output_tokens: Longest answer; ``None``: as given.

    Raises:
        ConfigurationError: the file cannot be read, is of another format, or has no conversation.
    """

    def __init__(
        self,
        seed: int,
        path: Path,
        count_tokens: Callable[[str], int] | None = None,
        output_tokens: int | None = None,
    ) -> None:
        self.name = "sharegpt"
        count = count_tokens or (lambda text: -(-len(text) // _CHARACTERS_PER_TOKEN))
        self._asks: list[Ask] = []
        self.longest = 0
        for prompt, answer in _first_turns(path):
            length, new_tokens = count(prompt), count(answer)
            if min(length, new_tokens) < _FEWEST_TOKENS:
                continue
            new_tokens = min(new_tokens, output_tokens or new_tokens)
            self._asks.append(Ask(prompt, new_tokens))
            # An estimate must not keep a request from being sent.
            self.longest = max(self.longest, length + new_tokens if count_tokens else 0)
        if not self._asks:
            raise ConfigurationError(
                f"{path} has no conversation with a question and an answer of "
                f"{_FEWEST_TOKENS} tokens or more"
            )
        self._random = random.Random(seed)
        self._left: list[Ask] = []

    def next(self) -> Ask:
        """Each conversation once in random order, then again in another."""
        if not self._left:
            self._left = self._random.sample(self._asks, len(self._asks))
        return self._left.pop()


def _first_turns(path: Path) -> list[tuple[str, str]]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--dataset {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigurationError(f"--dataset {path} is not JSON: {error}") from None
    turns = []
    try:
        for entry in document:
            spoken: Sequence[Any] = entry["conversations"]
            for question, answer in pairwise(spoken):
                if question["from"] in ("human", "user") and answer["from"] in ("gpt", "assistant"):
                    turns.append((str(question["value"]), str(answer["value"])))
                    break
    except (TypeError, KeyError, LookupError):
        raise ConfigurationError(
            f"--dataset {path} is not in ShareGPT's format: a list of objects with `conversations`"
        ) from None
    return turns


def encode(target: Target, ask: Ask, *, ignore_eos: bool) -> bytes:
    """A whole HTTP request for one ask: greedy, streaming.

    Args:
        ignore_eos: Ask for exactly ``new_tokens``, in the way of vLLM, SGLang and headrace; TGI's
            own route has no such switch.
    """
    body: dict[str, Any]
    if target.api == "tgi":
        body = {"inputs": ask.prompt, "parameters": {"max_new_tokens": ask.new_tokens}}
    else:
        body = {
            "model": target.model,
            "max_tokens": ask.new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignore_eos:
            body["ignore_eos"] = True
        if target.api == "chat":
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        else:
            body["prompt"] = ask.prompt
    return target.request(msgspec.json.encode(body))
