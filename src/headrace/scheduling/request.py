"""A request as the scheduler sees it: token ids, how many more, and how urgent."""

from __future__ import annotations

import collections.abc
from array import array
from dataclasses import dataclass

from headrace.link.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What one client asked for; immutable.

    Attributes:
        id: Chosen by the caller, unique among live requests.
        token_ids: Prompt, kept as an ``array`` of int32.
        max_new_tokens: Tokens to generate at most; at least 1.
        eos_token_ids: Ids that end the sequence; the ending id is part of the output.
        ignore_eos: Generate past ``eos_token_ids``.
        min_new_tokens: The first so many tokens do not end the sequence.
        priority: Larger is served earlier.
        cache_salt: Cached prefixes are shared only among requests of the same salt.
        adapter: Name of the adapter that computes it; ``None``: the base model alone.
        needs_prompt_logits: Every prompt token must be computed (prompt log-probabilities), so
            cached prefixes are not looked up.
    """

    id: int
    token_ids: collections.abc.Sequence[int]
    max_new_tokens: int
    eos_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_new_tokens: int = 0
    priority: int = 0
    cache_salt: str = ""
    adapter: str | None = None
    needs_prompt_logits: bool = False

    def __post_init__(self) -> None:
        """Copy the prompt into a compact array.

        Raises:
            InvalidRequest: The prompt is empty or holds what is not a token id, or
                ``max_new_tokens`` is below 1.
        """
        try:
            tokens = array("i", self.token_ids)
        except (TypeError, OverflowError):
            raise InvalidRequest(
                "token_ids", self.token_ids, "a list of integers from 0 to 2147483647"
            ) from None
        if not tokens:
            raise InvalidRequest("token_ids", [], "at least one token")
        if min(tokens) < 0:
            raise InvalidRequest("token_ids", min(tokens), "a list of integers >= 0")
        if self.max_new_tokens < 1:
            raise InvalidRequest("max_new_tokens", self.max_new_tokens, ">= 1")
        object.__setattr__(self, "token_ids", tokens)

    @property
    def prefix_salt(self) -> str:
        """What keys and values depend on besides tokens: requests that differ in it share none.

        A name of an adapter holds no NUL, so that no salt of a client can stand for one.
        """
        return f"{self.adapter or ''}\0{self.cache_salt}"
