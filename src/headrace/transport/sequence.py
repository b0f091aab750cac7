"""One sequence under way: the engine's ids become text, piece by piece."""

from __future__ import annotations

import msgspec

from headrace.checkpoint.text_stream import TextStream
from headrace.checkpoint.tokenizer import Tokenizer
from headrace.link.messages import FINISH_STOP, RequestOutput, TokenLogprob

_NO_TOP: list[TokenLogprob] = []


class GeneratedSequence:
    """The text of one sequence.

    Attributes:
        index: Place in the reply (prompt by prompt).
        seed: Seed of its random stream.
        tokens: Number of tokens so far.
        logprob: Sum of the log-probabilities of its tokens, where asked for.
        prompt_logprobs: One for each prompt token after the first, where asked for.
    """

    __slots__ = (
        "_stream",
        "cached_tokens",
        "finish_reason",
        "index",
        "logprob",
        "prompt_ids",
        "prompt_logprobs",
        "request_id",
        "seed",
        "tokens",
    )

    def __init__(
        self,
        *,
        index: int,
        request_id: int,
        prompt_ids: list[int],
        seed: int,
        tokenizer: Tokenizer,
        stop: tuple[str, ...],
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt_ids = prompt_ids
        self.seed = seed
        self.tokens = 0
        self.logprob = 0.0
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[float] = []
        self.cached_tokens = 0
        self._stream = TextStream(tokenizer, stop)

    @property
    def text(self) -> str:
        """All text so far, without the stop string that ended it."""
        return self._stream.text

    @property
    def text_with_stop(self) -> str:
        """All text so far, with the stop string that ended it (as TGI has it)."""
        return self._stream.text_with_stop

    def advance(self, output: RequestOutput, pieces: list[Piece]) -> None:
        """Take what one step added, as ``pieces``; tokens after a stop string are dropped."""
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        if output.cached_tokens is not None:
            self.cached_tokens = output.cached_tokens
        token_ids, logprobs, top_tokens = output.token_ids, output.logprobs, output.top_tokens
        last = len(token_ids) - 1
        for position, token_id in enumerate(token_ids):
            delta = self._stream.push((token_id,))
            text, reason = delta.text, None
            if delta.stop is not None:
                reason = FINISH_STOP
            elif position == last and output.finish_reason is not None:
                rest = self._stream.finish()
                text += rest.text
                reason = output.finish_reason if rest.stop is None else FINISH_STOP
            logprob = None
            if logprobs:
                logprob = logprobs[position]
                self.logprob += logprob
            top = top_tokens[position] if top_tokens else _NO_TOP
            self.tokens += 1
            pieces.append(Piece(self, token_id, text, delta.pieces[0], logprob, top, reason))
            if reason is not None:
                self.finish_reason = reason
                break


class Piece(msgspec.Struct, gc=False):
    """What one token added.

    Attributes:
        sequence: The sequence that it belongs to.
        text: Characters that are certain: complete, and no possible beginning of a stop string.
        token_text: The token's own text, held back or not; a special token as it is spelled.
        finish_reason: With the last token: TGI's name of the reason.
    """

    sequence: GeneratedSequence
    token_id: int
    text: str
    token_text: str
    logprob: float | None
    top_tokens: list[TokenLogprob]
    finish_reason: str | None
