"""What the transport knows of the model: its name, its tokenizer and its chat template."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from headrace.checkpoint.chat_template import ChatTemplate
from headrace.checkpoint.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """The text side of a model.

    Attributes:
        model_id: Name that clients see.
        revision: Commit of a hub model.
        loaded_at: Unix seconds, shown as ``created``.
    """

    model_id: str
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    revision: str | None = None
    loaded_at: int = field(default_factory=lambda: int(time.time()))
