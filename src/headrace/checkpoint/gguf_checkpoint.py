"""A checkpoint in one GGUF file."""
# ruff: noqa: D102 (docstrings are inherited)

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import check_tensors
from headrace.checkpoint.gguf import GGUFFile
from headrace.checkpoint.gguf_model import gguf_config, gguf_tensors
from headrace.checkpoint.tensors import TensorEntry

if TYPE_CHECKING:
    from headrace.checkpoint.tokenizer import Tokenizer

# Tokens that end a turn or a text in the supported families' vocabularies. GGUF files name one
# end token only, and for chat models it is not always the one that the model emits.
_END_TOKENS = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")
)
_GGUF_CONTROL = 3
_GGUF_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class GGUFCheckpoint(Checkpoint):
    """A GGUF file, which holds everything."""

    @cached_property
    def _file(self) -> GGUFFile:
        return GGUFFile(self.path)

    @cached_property
    def config(self) -> ModelConfig:
        return gguf_config(self._file)

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        entries = gguf_tensors(self._file, self.config)
        check_tensors(self.config, entries, str(self.path))
        return entries

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        found = {
            value
            for key in _GGUF_END_KEYS
            if isinstance(value := self._file.get(f"tokenizer.ggml.{key}"), int) and value >= 0
        }
        kinds = self._file.array("tokenizer.ggml.token_type")
        control = (index for index, kind in enumerate(kinds) if kind == _GGUF_CONTROL)
        found.update(i for i in control if i < len(self._tokens) and self._tokens[i] in _END_TOKENS)
        return tuple(sorted(found))

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        texts = {}
        for role, key in (
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
        ):
            token_id = self._file.get(f"tokenizer.ggml.{key}")
            if isinstance(token_id, int) and 0 <= token_id < len(self._tokens):
                texts[role] = self._tokens[token_id]
        return texts

    @cached_property
    def chat_templates(self) -> Mapping[str, str]:
        templates = {}
        default = self._file.get("tokenizer.chat_template")
        if isinstance(default, str):
            templates["default"] = default
        for name in self._file.array("tokenizer.chat_templates"):
            source = self._file.get(f"tokenizer.chat_template.{name}")
            if isinstance(source, str):
                templates[str(name)] = source
        return templates

    def load_tokenizer(self) -> Tokenizer:
        from headrace.checkpoint.gguf_tokenizer import gguf_tokenizer

        return gguf_tokenizer(self._file)

    @cached_property
    def _tokens(self) -> list[str]:
        return self._file.array("tokenizer.ggml.tokens")
