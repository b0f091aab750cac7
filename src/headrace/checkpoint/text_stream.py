"""Token ids in, text out, as it becomes certain: the incremental detokenizer."""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import NamedTuple

from headrace.checkpoint.stop_strings import StopMatcher
from headrace.checkpoint.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class TextDelta(NamedTuple):
    """What pushing some tokens brought.

    Attributes:
        text: Text that is now certain: no half characters, no possible beginning of a stop string.
        pieces: For each token used, the text that it completed, held back or not; special tokens
            appear as they are spelled. These are the ``token.text`` of TGI's events.
        stop: The stop string that is now complete, or ``None``.
        used: Number of tokens used: those after the end of a stop string are not.
    """

    text: str
    pieces: list[str]
    stop: str | None = None
    used: int = 0


class TextStream:
    """The text of one sequence of tokens.

    Each token costs a table look-up and a scan of its own few characters, whatever the length of
    the text so far. All texts together (with ``finish``) equal ``Tokenizer.decode`` of all ids, up
    to the first stop string. One difference: where a byte-fallback vocabulary spells bytes that
    are no UTF-8, ``decode`` replaces every byte of the run, the stream only the wrong ones.

    Args:
        stop: Stop strings. A stop string that is the spelling of a special token also ends the
            text when that token comes.
        skip_special_tokens: Leave special tokens out of the text.
        continues: The tokens follow a prompt, so that a sentencepiece vocabulary's space before
            the first word belongs to the text.

    Raises:
        InvalidRequest: An empty stop string.
    """

    __slots__ = (
        "_complete", "_matcher", "_parts", "_pending", "_pieces", "_runs_of_bytes", "_skip",
        "_stop", "_stops", "_strip_space", "_tokenizer", "_unsent", "_visible_stop",
    )  # fmt: skip

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special_tokens: bool = True,
        continues: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._pieces = tokenizer.pieces
        self._complete = tokenizer.plain_texts
        self._skip = skip_special_tokens
        self._stops = frozenset(stop)
        self._matcher = StopMatcher(stop) if stop else None
        self._runs_of_bytes = self._pieces.rules.byte_fallback
        self._strip_space = self._pieces.rules.strips_first_space and not continues
        self._pending = b""
        self._unsent = ""
        self._parts: list[str] = []
        self._stop: str | None = None
        self._visible_stop = ""

    @property
    def text(self) -> str:
        """Everything emitted so far: the text without the stop string (as OpenAI returns it)."""
        return "".join(self._parts)

    @property
    def text_with_stop(self) -> str:
        """The text and the stop string that ended it (as TGI's ``generated_text``)."""
        return self.text + self._visible_stop

    @property
    def stop(self) -> str | None:
        """The stop string that ended the text, or ``None``."""
        return self._stop

    def push(self, token_ids: Sequence[int]) -> TextDelta:
        """Add tokens; after a stop string further tokens are ignored."""
        if self._stop is not None:
            return TextDelta("", [])
        if len(token_ids) == 1 and not self._pending and not self._strip_space:
            piece = self._complete.get(token_ids[0])
            if piece is not None:
                text = piece if self._matcher is None else self._release(piece)
                self._parts.append(text)
                return TextDelta(text, [piece], self._stop, 1)
        texts = []
        pieces = []
        for token_id in token_ids:
            piece = self._decode(token_id)
            if self._skip and self._tokenizer.is_special(token_id):
                piece = self._tokenizer.token_text(token_id)
                if piece in self._stops:
                    texts.append(self._unsent)
                    self._unsent = ""
                    self._stop = piece
            else:
                texts.append(self._release(piece))
            pieces.append(piece)
            if self._stop is not None:
                break
        text = "".join(texts)
        self._parts.append(text)
        return TextDelta(text, pieces, self._stop, len(pieces))

    def finish(self) -> TextDelta:
        """The end of the tokens: emit what was held back; half a character becomes U+FFFD."""
        if self._stop is not None:
            return TextDelta("", [])
        text = self._release(self._flush()) + self._unsent
        self._unsent = ""
        self._parts.append(text)
        return TextDelta(text, [], self._stop, 0)

    def _decode(self, token_id: int) -> str:
        """The text that a token completes."""
        if self._skip and self._tokenizer.is_special(token_id):
            return ""
        if not self._pending:
            plain = self._complete.get(token_id)
            if plain is None:
                plain = self._tokenizer.remember_plain_text(token_id)
            if plain is not None:
                return self._without_first_space(plain)
        added = self._pieces.bytes_of(token_id)
        before = ""
        if self._runs_of_bytes and self._pending and not self._pieces.is_byte(token_id):
            before = self._flush()
        text, consumed = utf_8_decode(self._pending + added, "replace", False)
        self._pending = (self._pending + added)[consumed:]
        return self._without_first_space(before + text)

    def _flush(self) -> str:
        if self._runs_of_bytes:
            text = _REPLACEMENT * len(self._pending)
        else:
            text = self._pending.decode("utf-8", "replace")
        self._pending = b""
        return text

    def _without_first_space(self, text: str) -> str:
        if self._strip_space and text:
            self._strip_space = False
            return text.removeprefix(" ")
        return text

    def _release(self, text: str) -> str:
        """What of the unsent text and ``text`` may be sent; notes a completed stop string."""
        matcher = self._matcher
        if matcher is None:
            return text
        match = matcher.feed(text)
        if match is not None:
            self._stop = self._visible_stop = match.stop
            certain = self._unsent + text[: match.end]
            self._unsent = ""
            return certain[: len(certain) - len(match.stop)]
        certain = self._unsent + text
        cut = len(certain) - matcher.held
        self._unsent = certain[cut:]
        return certain[:cut]
