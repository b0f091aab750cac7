"""What is timed: sequences at once × prompt length, for prefill, decode steps and whole decodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.checkpoint.config import ModelConfig
from headrace.link.errors import ConfigurationError

SHORT, LONG = 8, 136
"""A decode step is (time for ``LONG`` new tokens - time for ``SHORT``) / (``LONG - SHORT``)."""

PROFILED_TOKENS = 41
"""New tokens of a generation whose last decode steps are traced."""

_CASE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, slots=True)
class Case:
    """One combination and what is measured for it.

    Attributes:
        batch: Sequences at once.
        context: Prompt tokens of each.
        prefill: Time one new token.
        decode: Time a decode step.
        decode_length: Time the decode of so many new tokens after the first; 0: do not.
        room: New tokens that buffers must hold, whatever is timed.
    """

    batch: int
    context: int
    prefill: bool = False
    decode: bool = False
    decode_length: int = 0
    room: int = 1

    @property
    def length(self) -> int:
        """Tokens of the longest sequence that this case computes."""
        new_tokens = [self.room]
        if self.decode:
            new_tokens.append(LONG)
        if self.decode_length:
            new_tokens.append(self.decode_length + 1)
        return self.context + max(new_tokens)


def grid(
    batches: Sequence[int], contexts: Sequence[int], decode_lengths: Sequence[int]
) -> list[Case]:
    """Every batch size × sequence length × decode length; all three times of each.

    A prefill and a decode step do not depend on the decode length: they are timed once.
    """
    return [
        Case(batch, context, prefill=first, decode=first, decode_length=length)
        for context in contexts
        for batch in batches
        for length, first in ((length, index == 0) for index, length in enumerate(decode_lengths))
    ]


def named_cases(decode: str, prefill: str) -> list[Case]:
    """Cases written as ``1x128,32x2048``: batch × context; prefills first.

    Raises:
        ConfigurationError: a case is written otherwise.
    """
    return [
        *(Case(batch, context, prefill=True) for batch, context in pairs_of("--prefill", prefill)),
        *(Case(batch, context, decode=True) for batch, context in pairs_of("--decode", decode)),
    ]


def profiled_cases(pairs: Sequence[tuple[int, int]]) -> list[Case]:
    """(batch, context) pairs whose decode steps are traced: buffers must hold them."""
    return [Case(batch, context, room=PROFILED_TOKENS) for batch, context in pairs]


def pairs_of(option: str, text: str) -> list[tuple[int, int]]:
    """``1x128,8x128`` as (batch, context) pairs.

    Raises:
        ConfigurationError: names the option and what it holds.
    """
    pairs = []
    for part in filter(None, text.split(",")):
        found = _CASE.fullmatch(part.strip())
        if found is None or not int(found[1]) or not int(found[2]):
            raise ConfigurationError(
                f"{option} must list BATCHxCONTEXT such as 1x128,32x2048, got `{part}`"
            )
        pairs.append((int(found[1]), int(found[2])))
    return pairs


def check_lengths(cases: Sequence[Case], config: ModelConfig) -> None:
    """Refuse sequences that the model has no positions for.

    Raises:
        ConfigurationError: names the longest case.
    """
    longest = max(cases, key=lambda case: case.length)
    if longest.length > config.max_position:
        raise ConfigurationError(
            f"a prompt of {longest.context} tokens and {longest.length - longest.context} new ones "
            f"make {longest.length}; the model has {config.max_position} positions"
        )
