"""What each token id adds to the text, as bytes, under the rules of the tokenizer's decoder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tokenizers import Tokenizer as Backend

from headrace.link.errors import ConfigurationError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of the 256 bytes in byte-level BPE vocabularies (GPT-2, 2019).

    Bytes that print as they are stand for themselves; the others take the code points from 256.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if chr(byte) not in alphabet)
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """How token strings become text.

    Attributes:
        byte_level: Characters stand for bytes.
        space: Character that stands for a space (sentencepiece's U+2581), or empty.
        byte_fallback: Tokens ``<0xNN>`` are bytes.
        strips_first_space: One space at the very start of a text is not part of it.
    """

    byte_level: bool = False
    space: str = ""
    byte_fallback: bool = False
    strips_first_space: bool = False


def decoder_rules(backend: Backend) -> DecoderRules:
    """Read the rules off a tokenizer's decoder.

    Raises:
        ConfigurationError: A decoder that cannot be applied token by token.
    """
    if backend.decoder is None:
        return DecoderRules()
    state = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    byte_level = byte_fallback = strips = False
    space = ""
    for step in steps:
        kind = step["type"]
        if kind == "ByteLevel":
            byte_level = True
        elif kind == "ByteFallback":
            byte_fallback = True
        elif kind == "Metaspace":
            space = step["replacement"]
            strips = step.get("prepend_scheme", "always") != "never"
        elif kind == "Replace" and step["content"] == " " and "String" in step["pattern"]:
            space = step["pattern"]["String"]
        elif kind == "Strip" and step["content"] == " " and (step["start"], step["stop"]) == (1, 0):
            strips = True
        elif kind != "Fuse":
            raise ConfigurationError(
                f"the tokenizer's decoder {kind!r} is not supported; "
                "ByteLevel, Metaspace, Replace, ByteFallback, Fuse and Strip are"
            )
    return DecoderRules(byte_level, space, byte_fallback, strips)


class TokenPieces:
    """Token id to bytes, computed once an id."""

    def __init__(self, backend: Backend) -> None:
        self.rules = decoder_rules(backend)
        self._backend = backend
        self._alphabet = byte_alphabet() if self.rules.byte_level else {}

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes that a token adds; empty for ids outside the vocabulary."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self.rules.byte_level:
            try:
                return bytes(map(self._alphabet.__getitem__, token))
            except KeyError:
                return token.encode()
        match = _BYTE_TOKEN.fullmatch(token) if self.rules.byte_fallback else None
        if match is not None:
            return bytes([int(match[1], 16)])
        return (token.replace(self.rules.space, " ") if self.rules.space else token).encode()

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one byte of a byte-fallback vocabulary."""
        token = self._backend.id_to_token(token_id) if self.rules.byte_fallback else None
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None
