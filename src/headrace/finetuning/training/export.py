"""What a finished run leaves: the adapter for PEFT, and the base with it merged in."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.finetuning.training.base_model import load_base
from headrace.finetuning.training.tokenizer_files import load_transformers_tokenizer


def copy_adapter(checkpoint: Path, target: Path) -> None:
    """Put a checkpoint's adapter into ``target``, each file whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    for source in sorted(checkpoint.iterdir()):
        if source.name.startswith("adapter_") and source.is_file():
            unfinished = target / f".{source.name}.part"
            shutil.copyfile(source, unfinished)
            unfinished.replace(target / source.name)


def write_merged(base: Checkpoint, adapter: Path, target: Path, dtype: torch.dtype) -> None:
    """Write a full checkpoint with ``adapter`` merged into ``base``, computed on the CPU.

    The base is read anew, so that adapters trained over a quantized base are merged into the exact
    weights.

    Args:
        base: The model that the adapter was trained on.
        adapter: Its directory.
        target: Directory to write; replaced where it exists.
        dtype: Of the written weights.
    """
    # Under ZeRO-3 Transformers would shard what it loads.
    unset_hf_deepspeed_config()  # type: ignore[no-untyped-call]
    merged = PeftModel.from_pretrained(load_base(base, dtype), str(adapter)).merge_and_unload()
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    merged.save_pretrained(unfinished)
    load_transformers_tokenizer(base).save_pretrained(unfinished)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.replace(target)
