"""A directory that stands for a model without files: its config and a tokenizer of made-up words.

With it a built-in shape goes through the public ``LLM`` like any model, detokenizer included.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.config_json import config_json


@contextmanager
def stand_in_directory(config: ModelConfig) -> Iterator[str]:
    """A directory that ``LLM`` opens with ``random_weights_seed``; removed at the end."""
    from tokenizers import Tokenizer, models

    words = {f"w{token_id}": token_id for token_id in range(config.vocab_size)}
    with tempfile.TemporaryDirectory(prefix="headrace-") as directory:
        path = Path(directory)
        (path / "config.json").write_text(json.dumps(config_json(config)))
        Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(path / "tokenizer.json"))
        yield directory
