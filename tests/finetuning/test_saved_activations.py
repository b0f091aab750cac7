"""The predicted activation memory against the tensors that autograd really saves."""

from __future__ import annotations

import contextlib
import dataclasses
import gc

import msgspec
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.config_json import config_json
from headrace.finetuning.fused.apply import fuse
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.activations import saved_bytes
from headrace.finetuning.placement.parameter_counts import adapter_parameters
from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload

LLAMA = ModelConfig(
    family="llama",
    hidden_size=192,
    intermediate_size=512,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=640,
    max_position=256,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
)
QWEN3 = msgspec.structs.replace(
    LLAMA, family="qwen3", qk_norm=True, tie_word_embeddings=True, num_kv_heads=3
)
TIED = msgspec.structs.replace(LLAMA, family="qwen2", attention_bias=True, num_layers=4)
STOCK = TrainingWorkload(rows=2, row_tokens=96, fused=UNFUSED, dropout=0.1, on_gpu=False)


CHANGES = [
    {},
    {"autocast": False},
    {"adapter_dtype": "bf16", "autocast": False},
    {"adapter_dtype": "bf16", "autocast": False, "dropout": 0.0},
    {"dropout": 0.0},
    {"base_precision": "fp32", "autocast": False},
    {"base_precision": "fp32", "autocast": False, "dropout": 0.0},
    {"target_modules": ("all-linear",), "rank": 16},
    {"target_modules": ("all-linear",), "adapter_dtype": "bf16", "autocast": False},
    {
        "target_modules": ("q_proj", "o_proj", "down_proj"),
        "adapter_dtype": "bf16",
        "autocast": False,
        "dropout": 0.0,
    },
    {"target_modules": ("q_proj", "k_proj", "gate_proj"), "rows": 1},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "adapter_dtype": "bf16", "autocast": False},
]


@pytest.mark.parametrize(
    ("config", "changes"),
    [(LLAMA, changes) for changes in CHANGES]
    + [(config, changes) for config in (TIED, QWEN3) for changes in (CHANGES[0], CHANGES[7])],
    ids=lambda value: getattr(value, "family", str(value)),
)
def test_what_a_step_keeps_is_predicted(config: ModelConfig, changes: dict[str, object]) -> None:
    workload = dataclasses.replace(STOCK, **changes)
    # The loss keeps its log-softmax and the labels, autocast a bf16 copy of each adapter.
    of_loss = workload.tokens * (4 * config.vocab_size + 8)
    casts = 0
    if workload.autocast and not workload.gradient_checkpointing:
        casts = 2 * adapter_parameters(config, workload.rank, workload.target_modules)
    predicted = saved_bytes(config, workload) + of_loss + casts
    assert predicted == pytest.approx(saved_by_autograd(config, workload), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("config", [LLAMA, TIED], ids=lambda config: config.family)
def test_what_fused_layers_keep_is_predicted(config: ModelConfig, checkpointing: bool) -> None:
    workload = dataclasses.replace(
        STOCK,
        row_tokens=256,
        fused=FusedPieces(),
        gradient_checkpointing=checkpointing,
        autocast=False,
    )
    model = build(config, workload)
    fuse(model)
    ids = torch.randint(0, config.vocab_size, (workload.rows, workload.row_tokens))
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    with LiveStorages(own) as live:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    # Fused head and loss keep the gradient of the hidden states; adapters are kept in bf16.
    of_loss = 2 * config.hidden_size * workload.tokens
    casts = 2 * adapter_parameters(config, workload.rank, workload.target_modules)
    predicted = saved_bytes(config, workload) + of_loss + casts
    assert loss.requires_grad
    assert predicted == pytest.approx(live.total_bytes(), rel=0.05)


class LiveStorages(TorchDispatchMode):
    """The storages that operations have made and that are still alive, views of others not."""

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self._others = others
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self._others:
                    continue
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def total_bytes(self) -> int:
        gc.collect()
        return sum(size for storage, size in self._made.values() if not storage.expired())


def saved_by_autograd(config: ModelConfig, workload: TrainingWorkload) -> int:
    """Bytes that a forward pass with loss keeps for its backward pass, parameters not counted."""
    model = build(config, workload)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        # Holding the tensor keeps its address from being given to another one.
        if address not in own:
            kept.setdefault(address, tensor)
        return tensor

    ids = torch.randint(0, config.vocab_size, (workload.rows, workload.row_tokens))
    casts = torch.autocast("cpu", torch.bfloat16) if workload.autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), casts:
        model(input_ids=ids, labels=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def build(config: ModelConfig, workload: TrainingWorkload) -> PreTrainedModel:
    """A random model of this shape with fresh adapters, as stock PEFT makes them."""
    torch.manual_seed(0)
    dtype = torch.float32 if workload.base_precision == "fp32" else torch.bfloat16
    described = AutoConfig.for_model(**config_json(config))
    model = AutoModelForCausalLM.from_config(described, dtype=dtype, attn_implementation="sdpa")
    targets = list(workload.target_modules)
    lora = LoraConfig(
        r=workload.rank,
        lora_dropout=workload.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora, autocast_adapter_dtype=workload.adapter_dtype == "fp32")
    if workload.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return model.train()
