"""A checkpoint in Hugging Face's directory format."""
# ruff: noqa: D102 (docstrings are inherited)

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import check_tensors
from headrace.checkpoint.hf_config import hf_config
from headrace.checkpoint.safetensors_index import safetensors_entries
from headrace.checkpoint.source_files import HuggingFaceFiles
from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError

if TYPE_CHECKING:
    from headrace.checkpoint.tokenizer import Tokenizer


class HuggingFaceCheckpoint(Checkpoint):
    """A directory in Hugging Face's format: config.json, safetensors, tokenizer.json."""

    def __init__(self, model_id: str, path: Path, sha: str | None = None) -> None:
        super().__init__(model_id, path, sha)
        self._files = HuggingFaceFiles(path)

    @cached_property
    def config(self) -> ModelConfig:
        return hf_config(self._files.config, self.path / "config.json")

    @cached_property
    def tensors(self) -> Mapping[str, TensorEntry]:
        entries = safetensors_entries(self.path)
        check_tensors(self.config, entries, str(self.path))
        return entries

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        found: set[int] = set()
        for source in (self._files.config, self._files.generation_config):
            value = source.get("eos_token_id")
            for token_id in value if isinstance(value, list) else [value]:
                if isinstance(token_id, int) and token_id >= 0:
                    found.add(token_id)
        eos = self._files.special_tokens.get("eos_token")
        if eos in self._files.added_token_ids:
            found.add(self._files.added_token_ids[eos])
        return tuple(sorted(found))

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self._files.special_tokens

    @cached_property
    def chat_templates(self) -> Mapping[str, str]:
        return self._files.chat_templates

    def load_tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer as Backend

        from headrace.checkpoint.tokenizer import Tokenizer

        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(
                f"{path}: missing; headrace needs the tokenizer in this format"
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise ConfigurationError(f"{path}: unusable tokenizer ({error})") from None
        ids = {role: backend.token_to_id(text) for role, text in self._files.special_tokens.items()}
        return Tokenizer(
            backend,
            bos_id=ids.get("bos_token"),
            eos_id=ids.get("eos_token"),
            special_ids=[token_id for token_id in ids.values() if token_id is not None],
        )
