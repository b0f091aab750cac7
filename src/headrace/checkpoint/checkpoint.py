"""A model before any tensor is loaded: configuration, tensor directory, tokens, templates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.tensors import TensorEntry

# Whoever needs only tensors should not wait for the libraries of tokenizers and templates.
if TYPE_CHECKING:
    from headrace.checkpoint.chat_template import ChatTemplate
    from headrace.checkpoint.tokenizer import Tokenizer


class Checkpoint(ABC):
    """What every source of a model offers. Everything is read when first asked for.

    Attributes:
        model_id: As the user named it.
        path: The directory or file that holds it.
        sha: Commit of the hub's repository, or ``None``.
    """

    def __init__(self, model_id: str, path: Path, sha: str | None = None) -> None:
        self.model_id = model_id
        self.path = path
        self.sha = sha

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """The architecture."""

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, TensorEntry]:
        """Where each tensor lies, under Hugging Face's names; checked against ``config``."""

    @property
    @abstractmethod
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text, ascending: the union of what the model's files name."""

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, str]:
        """Role (``bos_token``, ``eos_token`` ...) to text, as chat templates see them."""

    @property
    @abstractmethod
    def chat_templates(self) -> Mapping[str, str]:
        """Template sources by name; the ordinary one is ``default``. Empty: no chat model."""

    @abstractmethod
    def load_tokenizer(self) -> Tokenizer:
        """Build the tokenizer; takes time, so call it once and keep it."""

    def load_chat_template(self) -> ChatTemplate:
        """The chat templates, ready to render; ``exists`` is false where the model has none."""
        from headrace.checkpoint.chat_template import ChatTemplate

        return ChatTemplate(self.chat_templates, self.special_tokens)

    @property
    def max_position(self) -> int:
        """Longest sequence in tokens."""
        return self.config.max_position
