"""A base with an adapter merged into it, written shard by shard."""

from __future__ import annotations

import json
import shutil
from math import prod
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from transformers import GenerationConfig

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.expected_tensors import expected_tensors
from headrace.finetuning.base_precision.base_weights import BaseWeights
from headrace.finetuning.base_precision.transformers_config import transformers_config
from headrace.finetuning.training.tokenizer_files import load_transformers_tokenizer
from headrace.modeling.adapters.peft_directory import AdaptedModule, read_adapter
from headrace.modeling.loading.tensor_reader import TensorReader

_SHARD = "5GB"
_PATTERN = "model{suffix}.safetensors"
_MAX_RANK = 4096


def write_merged(base: Checkpoint, adapter: Path, target: Path, dtype: torch.dtype) -> None:
    """Write a full checkpoint with ``adapter`` merged into ``base``, computed on the CPU.

    Adapters that were trained over a quantized base are merged into the weights as they were
    before. The host holds one shard at a time.

    Args:
        base: The model that the adapter was trained on.
        adapter: Its directory.
        target: Directory to write; replaced where it exists.
        dtype: Of the written weights; the sum is computed in float32 and rounded once.

    Raises:
        ConfigurationError: a tensor that cannot be read.
        OSError: the disk takes no more.
    """
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_weights(_Merger(base, adapter, dtype), unfinished, dtype)
        _write_description(base, unfinished, dtype)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _Merger:
    """Reads tensors of the base, with the adapter's updates in them."""

    def __init__(self, base: Checkpoint, adapter: Path, dtype: torch.dtype) -> None:
        cpu = torch.device("cpu")
        self.shapes = expected_tensors(base.config)
        self._weights = BaseWeights(base, cpu)
        self._modules = read_adapter("--merge", str(adapter), base.config, _MAX_RANK).modules
        entries = {e.name: e for m in self._modules.values() for e in (m.down, m.up)}
        self._updates = TensorReader(entries, cpu)
        self._dtype = dtype

    def read(self, name: str) -> torch.Tensor:
        """A tensor of the merged model."""
        module = self._modules.get(name.removesuffix(".weight"))
        if module is None:
            return self._weights.read(name, self._dtype)
        return self._merged(self._weights.read(name, torch.float32), module).to(self._dtype)

    def _merged(self, weight: torch.Tensor, module: AdaptedModule) -> torch.Tensor:
        down = self._updates.read_vector(module.down.name, torch.float32)
        up = self._updates.read_vector(module.up.name, torch.float32)
        return torch.addmm(weight, up, down, alpha=module.scale)


def _write_weights(merger: _Merger, directory: Path, dtype: torch.dtype) -> None:
    split = split_state_dict_into_shards_factory(
        merger.shapes,
        get_storage_size=lambda shape: prod(shape) * dtype.itemsize,
        filename_pattern=_PATTERN,
        max_shard_size=_SHARD,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: merger.read(name) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2)
        (directory / "model.safetensors.index.json").write_text(f"{text}\n")


def _write_description(base: Checkpoint, directory: Path, dtype: torch.dtype) -> None:
    config = transformers_config(base)
    config.dtype = dtype
    config.save_pretrained(directory)
    own = base.path / "generation_config.json"
    if own.is_file():
        shutil.copyfile(own, directory / own.name)
    else:
        GenerationConfig.from_model_config(config).save_pretrained(directory)
    load_transformers_tokenizer(base).save_pretrained(directory)
