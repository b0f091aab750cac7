"""Sampling parameters under TGI's names, and their bounds (one table for every public face)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import msgspec

from headrace.link.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Bound:
    """An interval that a numeric parameter must lie in; ``None`` leaves a side open."""

    gt: float | None = None
    ge: float | None = None
    le: float | None = None

    def admits(self, value: float) -> bool:
        """Whether a finite ``value`` lies inside."""
        return (
            isfinite(value)
            and (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        lower = f"> {self.gt:g}" if self.gt is not None else ""
        if self.ge is not None:
            lower = f">= {self.ge:g}"
        upper = f"<= {self.le:g}" if self.le is not None else ""
        return "a number " + " and ".join(part for part in (lower, upper) if part)


MAX_SEED = 2**64 - 1
MOST_TOP_TOKENS = 1024
MOST_BIASED_TOKENS = 1024

BOUNDS: dict[str, Bound] = {
    "temperature": Bound(gt=0.0),
    "top_k": Bound(gt=0),
    "top_p": Bound(gt=0.0, le=1.0),
    "typical_p": Bound(gt=0.0, le=1.0),
    "repetition_penalty": Bound(gt=0.0),
    "frequency_penalty": Bound(ge=-2.0, le=2.0),
    "presence_penalty": Bound(ge=-2.0, le=2.0),
    "max_new_tokens": Bound(gt=0),
    "min_new_tokens": Bound(ge=0),
    "top_n_tokens": Bound(ge=0, le=MOST_TOP_TOKENS),
    "truncate": Bound(gt=0),
    "best_of": Bound(gt=0),
    "seed": Bound(ge=0, le=MAX_SEED),
}


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are chosen and when they end.

    The names are TGI's, plus ``ignore_eos`` and ``min_new_tokens``. ``None`` means absent.
    ``stop``, ``best_of``, ``return_full_text`` and ``truncate`` are applied by whoever holds the
    text (transport or ``LLM``), never by the engine.

    Attributes:
        max_new_tokens: Number of tokens to generate at most; ``None``: what fits.
        min_new_tokens: End-of-sequence ids are masked out until so many tokens exist.
        ignore_eos: Generate past end-of-sequence ids.
        do_sample: Draw from the distribution; otherwise the most likely token is taken.
        temperature: Logits are divided by it before sampling; > 0.
        top_k: Keep the ``top_k`` most likely tokens; ``None``: all.
        top_p: Keep the smallest set of most likely tokens whose probability reaches it
            (nucleus sampling, arXiv:1904.09751).
        typical_p: Keep the tokens of most typical information content (arXiv:2202.00666).
        repetition_penalty: Divides positive and multiplies negative logits of tokens that occur
            in prompt or output (CTRL, arXiv:1909.05858).
        frequency_penalty: Subtracted once for each occurrence in the output.
        presence_penalty: Subtracted once for each token present in the output.
        logit_bias: Token id to a value added to its logit.
        stop: Strings that end the generation.
        best_of: Generate so many sequences and return the one of highest cumulative
            log-probability; needs ``do_sample``. Like ``stop`` it is not the engine's business.
        return_full_text: The text begins with the prompt. Not the engine's business either.
        seed: Seed of the request's own random stream; ``None``: drawn at random by the server.
        truncate: Keep only so many last prompt tokens.
        logprobs: Return the log-probability of every chosen token (model distribution,
            before temperature and filters).
        top_n_tokens: Return that many most likely tokens with every chosen one.
        decoder_input_details: Return the log-probability of every prompt token.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    ignore_eos: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = msgspec.field(default_factory=dict)
    stop: tuple[str, ...] = ()
    best_of: int = 1
    return_full_text: bool = False
    seed: int | None = None
    truncate: int | None = None
    logprobs: bool = False
    top_n_tokens: int = 0
    decoder_input_details: bool = False

    def check(self) -> None:
        """Hold every numeric parameter against ``BOUNDS``.

        Raises:
            InvalidRequest: naming the first field that is out of its bound.
        """
        for field, bound in BOUNDS.items():
            value = getattr(self, field)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidRequest(field, value, str(bound))
            if not bound.admits(value):
                raise InvalidRequest(field, value, str(bound))
        if self.best_of > 1 and not self.do_sample:
            raise InvalidRequest("best_of", self.best_of, "1 unless do_sample is true")
        if len(self.logit_bias) > MOST_BIASED_TOKENS:
            raise InvalidRequest(
                "logit_bias", f"{len(self.logit_bias)} tokens", f"<= {MOST_BIASED_TOKENS} tokens"
            )
        for token, bias in self.logit_bias.items():
            if not Bound(ge=-100.0, le=100.0).admits(bias):
                raise InvalidRequest(f"logit_bias.{token}", bias, "a number >= -100 and <= 100")
