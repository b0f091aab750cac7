"""The tokenizer as Transformers has it, also for models that come as one GGUF file."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint


def load_transformers_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer, with its chat template, for ``save_pretrained``."""
    if not isinstance(checkpoint, GGUFCheckpoint):
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.path, local_files_only=True
        )
        return loaded
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=checkpoint.load_tokenizer().backend,
        clean_up_tokenization_spaces=False,
        **checkpoint.special_tokens,
    )
    tokenizer.chat_template = checkpoint.chat_templates.get("default")
    return tokenizer
