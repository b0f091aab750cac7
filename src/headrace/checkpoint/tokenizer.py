"""The tokenizer's face: text to ids and back, over the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Encoding
from tokenizers import Tokenizer as Backend

from headrace.checkpoint.token_pieces import TokenPieces
from headrace.link.errors import InvalidRequest


class TokenSpan(NamedTuple):
    """A token and the characters ``text[start:stop]`` of the encoded text that it covers."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """Encodes and decodes. Special tokens written out in a text are parsed as such.

    Attributes:
        pieces: The bytes of each token, for incremental decoding.
        plain_texts: Ids met so far whose tokens are whole characters and not special, with their
            text; grown by ``remember_plain_text``.
        bos_id: Beginning-of-sequence id, if the model has one.
        eos_id: The tokenizer's own end-of-sequence id, if it has one.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        special_ids: Iterable[int] = (),
    ) -> None:
        self._backend = backend
        # A tokenizer.json may carry truncation and padding of its training days.
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._special.update(special_ids)
        self.pieces = TokenPieces(backend)
        self.plain_texts: dict[int, str] = {}
        self.bos_id = bos_id
        self.eos_id = eos_id

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; a model's logits may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def backend(self) -> Backend:
        """The library's own tokenizer, to write it to a file."""
        return self._backend

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that ``decode`` leaves out with ``skip_special_tokens``."""
        return frozenset(self._special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; with ``add_special_tokens`` framed as the tokenizer frames texts.

        A text that already begins with the beginning-of-sequence token does not get a second.

        Raises:
            InvalidRequest: ``text`` holds surrogates, which no encoding has.
        """
        ids: list[int] = self._encoding(text, add_special_tokens).ids
        return ids[1:] if self._is_doubled(ids, add_special_tokens) else ids

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True) -> list[TokenSpan]:
        """As ``encode``, each token with the characters it covers (none where it was added)."""
        encoding = self._encoding(text, add_special_tokens)
        spans = [
            TokenSpan(token_id, text[start:stop], start, stop)
            for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return spans[1:] if self._is_doubled(encoding.ids, add_special_tokens) else spans

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of all ids together."""
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in self._special]
        return self._backend.decode(token_ids, skip_special_tokens=False)

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a control token rather than text."""
        return token_id in self._special

    def token_text(self, token_id: int) -> str:
        """The text of one token alone; U+FFFD where it is a part of a character."""
        return self.pieces.bytes_of(token_id).decode("utf-8", "replace")

    def remember_plain_text(self, token_id: int) -> str | None:
        """Enter a token into ``plain_texts``; ``None`` where its bytes need their neighbours."""
        if token_id in self._special or self.pieces.is_byte(token_id):
            return None
        try:
            text = self.pieces.bytes_of(token_id).decode()
        except UnicodeDecodeError:
            return None
        self.plain_texts[token_id] = text
        return text

    def token_id(self, token: str) -> int | None:
        """The id of a token spelled as in the vocabulary."""
        return self._backend.token_to_id(token)

    def _encoding(self, text: str, add_special_tokens: bool) -> Encoding:
        try:
            # A batch of one: `encode` holds the interpreter lock, for half a second on a text of
            # 400,000 characters, in which a server could answer nothing. Batches release it.
            return self._backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        except (TypeError, UnicodeEncodeError):  # which of them depends on the library
            raise InvalidRequest("inputs", text, "valid Unicode without surrogates") from None

    def _is_doubled(self, ids: list[int], add_special_tokens: bool) -> bool:
        return (
            add_special_tokens and len(ids) > 1 and ids[0] == self.bos_id and ids[1] == self.bos_id
        )
