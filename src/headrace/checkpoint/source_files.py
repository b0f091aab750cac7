"""The small JSON and template files beside a Hugging Face checkpoint, read on demand."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from headrace.link.errors import ConfigurationError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        ConfigurationError: Unreadable, malformed, or not an object.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: malformed JSON ({error})") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as UTF-8 text ({error})") from None


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _TokenizerJson(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


class HuggingFaceFiles:
    """What a checkpoint directory says about its tokens.

    Attributes:
        directory: Holds ``config.json``, ``tokenizer.json`` and the others.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``."""
        path = self.directory / "config.json"
        if not path.is_file():
            raise ConfigurationError(f"{path}: missing; not a Hugging Face model directory")
        return read_json(path)

    @cached_property
    def generation_config(self) -> dict[str, Any]:
        """``generation_config.json``, or empty."""
        return read_json(self.directory / "generation_config.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any]:
        """``tokenizer_config.json``, or empty."""
        return read_json(self.directory / "tokenizer_config.json")

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Role (``bos_token``, ``eos_token`` ...) to the token's text."""
        merged = read_json(self.directory / "special_tokens_map.json") | self.tokenizer_config
        texts = {}
        for role, value in merged.items():
            if not role.endswith("_token") or role.startswith("add_"):
                continue
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                texts[role] = text
        return texts

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """Template sources by name, from separate files or else from ``tokenizer_config.json``."""
        templates = {}
        inline = self.tokenizer_config.get("chat_template")
        if isinstance(inline, str):
            templates["default"] = inline
        for named in inline if isinstance(inline, list) else []:
            if isinstance(named, dict) and isinstance(named.get("template"), str):
                templates[str(named.get("name"))] = named["template"]
        legacy = read_json(self.directory / "chat_template.json").get("chat_template")
        if isinstance(legacy, str):
            templates["default"] = legacy
        files = {"default": self.directory / "chat_template.jinja"}
        for path in sorted((self.directory / "additional_chat_templates").glob("*.jinja")):
            files[path.stem] = path
        for name, path in files.items():
            if path.is_file():
                templates[name] = _read_text(path)
        return templates

    @cached_property
    def added_token_ids(self) -> dict[str, int]:
        """Text to id of the tokens added to the vocabulary; special tokens are among them."""
        decoder = self.tokenizer_config.get("added_tokens_decoder")
        ids = {}
        if isinstance(decoder, dict):
            for token_id, token in decoder.items():
                if token_id.isdecimal() and isinstance(token, dict):
                    ids[str(token.get("content"))] = int(token_id)
        if ids:
            return ids
        path = self.directory / "tokenizer.json"
        try:
            added = msgspec.json.decode(path.read_bytes(), type=_TokenizerJson).added_tokens
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: unusable tokenizer ({error})") from None
        return {token.content: token.id for token in added}
