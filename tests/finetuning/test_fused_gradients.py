"""Fused training computes what Transformers and PEFT compute: losses and gradients, dropout too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from headrace.finetuning.fused.adapters import aliased, find_branch, parameters_of
from headrace.finetuning.fused.apply import fuse
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.kernels.lora.reference import keep_mask
from headrace.link.errors import ConfigurationError, InvalidRequest

NONE = FusedPieces(
    decoder_layer=False,
    merged_projections=False,
    lora_linear=False,
    rms_norm=False,
    rotary=False,
    swiglu=False,
    cross_entropy=False,
)
PIECES = {
    "all": FusedPieces(),
    "unmerged": FusedPieces(merged_projections=False),
    "layers only": replace(NONE, decoder_layer=True, merged_projections=True),
    "modules": replace(NONE, lora_linear=True, rms_norm=True, rotary=True, swiglu=True),
    "lora": replace(NONE, lora_linear=True),
    "norms": replace(NONE, rms_norm=True),
    "rotary": replace(NONE, rotary=True),
    "swiglu": replace(NONE, swiglu=True),
    "loss": replace(NONE, cross_entropy=True),
    "none": NONE,
}
QV = ["q_proj", "v_proj"]
ALL_LINEAR = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny(family: str = "llama", targets: list[str] = QV, dropout: float = 0.0, **lora: Any) -> Any:
    """The same small model with the same, non-zero adapters at every call."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 113,
        "max_position_embeddings": 64,
    }  # fmt: skip
    if family == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**sizes))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=targets, **lora)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name or name.endswith("bias"):
                parameter.normal_(std=0.1)
    return peft.train()


def rows(number: int = 2, length: int = 17) -> torch.Tensor:
    return torch.randint(0, 113, (number, length), generator=torch.Generator().manual_seed(1))


def labels_of(ids: torch.Tensor) -> torch.Tensor:
    labels = ids.clone()
    labels[0, :5] = -100
    return labels


def step(model: Any, **inputs: Any) -> tuple[float, dict[str, torch.Tensor]]:
    loss = model(**inputs).loss
    loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in trained.values())
    return float(loss), trained


def assert_same(
    mine: tuple[float, dict[str, torch.Tensor]],
    theirs: tuple[float, dict[str, torch.Tensor]],
    tolerance: float = 2e-5,
) -> None:
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    assert mine[1].keys() == theirs[1].keys()
    for name, grad in theirs[1].items():
        assert float(grad.norm()) > 0, name
        assert float((mine[1][name] - grad).norm() / grad.norm()) < tolerance, name


@pytest.mark.parametrize("targets", [QV, ALL_LINEAR, ["down_proj"]], ids=["qv", "all", "down"])
@pytest.mark.parametrize("pieces", PIECES)
def test_loss_and_gradients_are_pefts(pieces: str, targets: list[str]) -> None:
    inputs = {"input_ids": rows(), "labels": labels_of(rows())}
    model = tiny(targets=targets)
    fuse(model, PIECES[pieces])
    assert_same(step(model, **inputs), step(tiny(targets=targets), **inputs))


def test_a_captured_step_takes_gradients_beside_the_parameters() -> None:
    """What accumulates their gradients (DDP's hooks hang on it) has no part in the capture."""
    model = tiny()
    fuse(model)
    branches = [
        branch
        for name, module in model.named_modules()
        if (branch := find_branch(module, 0, name)) is not None
    ]
    parameters = parameters_of(branches)
    calls: list[int] = []
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda _: calls.append(1))
    with aliased(branches) as leaves:
        loss = model(input_ids=rows(), labels=rows()).loss
        found = torch.autograd.grad(loss, leaves)
    assert not calls
    assert all(one is other for one, other in zip(parameters_of(branches), parameters, strict=True))
    assert all(leaf.data_ptr() == p.data_ptr() for leaf, p in zip(leaves, parameters, strict=True))
    model(input_ids=rows(), labels=rows()).loss.backward()
    assert len(calls) == len(parameters) == 8
    for grad, parameter in zip(found, parameters, strict=True):
        assert torch.equal(grad, parameter.grad)


@pytest.mark.parametrize("pieces", ["all", "modules"])
def test_biases_of_the_base_take_part(pieces: str) -> None:
    inputs = {"input_ids": rows(), "labels": rows()}
    model = tiny("qwen2")
    fuse(model, PIECES[pieces])
    assert_same(step(model, **inputs), step(tiny("qwen2"), **inputs))


@pytest.mark.parametrize("targets", [QV, ALL_LINEAR], ids=["qv", "all"])
def test_checkpointing_recomputes_the_same(targets: list[str]) -> None:
    inputs = {"input_ids": rows(), "labels": rows()}
    results = []
    for checkpointing in (False, True):
        model = tiny(targets=targets, dropout=0.3)
        fuse(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(7)
        results.append(step(model, **inputs))
    assert_same(results[1], results[0], tolerance=1e-6)


class ReplayedMask(nn.Module):
    """PEFT's dropout with the mask that the fused form makes from a seed."""

    def __init__(self, seed: torch.Tensor, probability: float) -> None:
        super().__init__()
        self.seed, self.p = seed, probability

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, -2)
        mask = keep_mask(self.seed, flat.shape[0], flat.shape[1], self.p)
        return (flat * mask / (1 - self.p)).view(x.shape)


def test_dropout_in_forward_and_backward_is_one_mask() -> None:
    probability, inputs = 0.3, {"input_ids": rows(), "labels": rows()}
    model = tiny(targets=ALL_LINEAR, dropout=probability)
    fuse(model)
    torch.manual_seed(11)
    mine = step(model, **inputs)
    torch.manual_seed(11)
    seeds = torch.randint(2**31 - 1, (2, 7), dtype=torch.int32)
    order = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    stock = tiny(targets=ALL_LINEAR, dropout=probability)
    for name, module in list(stock.named_modules()):
        if hasattr(module, "lora_dropout"):
            layer, place = int(name.split(".")[4]), order.index(name.rsplit(".", 1)[1])
            module.lora_dropout["default"] = ReplayedMask(seeds[layer, place], probability)
    theirs = step(stock, **inputs)
    assert_same(mine, theirs)
    assert abs(mine[0] - step(tiny(targets=ALL_LINEAR), **inputs)[0]) > 1e-4


def test_dropout_drops_its_share_and_masks_differ() -> None:
    masks = [keep_mask(torch.tensor(seed), 500, 400, 0.1) for seed in (3, 4)]
    for mask in masks:
        assert float((~mask).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float((~masks[0] & ~masks[1]).float().mean()) == pytest.approx(0.01, abs=0.003)


def test_packed_documents_do_not_see_each_other() -> None:
    documents = [rows(1, 6), rows(1, 9) + 0, rows(1, 4)]
    ids = torch.cat(documents, dim=1)
    positions = torch.cat([torch.arange(part.shape[1]) for part in documents])[None]
    model = tiny(targets=ALL_LINEAR)
    fuse(model)
    packed = step(model, input_ids=ids, labels=ids, position_ids=positions)
    counted = sum(part.shape[1] - 1 for part in documents)
    apart = tiny(targets=ALL_LINEAR)
    total = sum(apart(input_ids=part, labels=part).loss * (part.shape[1] - 1) for part in documents)
    (total / counted).backward()
    grads = {name: p.grad for name, p in apart.named_parameters() if p.requires_grad}
    assert_same(packed, (float(total.detach()) / counted, grads))


def test_right_padding_changes_nothing_and_left_padding_is_refused() -> None:
    ids, mask = rows(), torch.ones(2, 17, dtype=torch.long)
    mask[1, 12:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    model = tiny()
    fuse(model)
    assert_same(step(model, **inputs), step(tiny(), **inputs))
    with pytest.raises(InvalidRequest, match="attention_mask"):
        model(input_ids=ids, labels=labels, attention_mask=mask.flip(1))


def test_number_of_items_divides_the_sum() -> None:
    inputs = {"input_ids": rows(), "labels": rows(), "num_items_in_batch": torch.tensor(64)}
    model = tiny()
    fuse(model)
    assert_same(step(model, **inputs), step(tiny(), **inputs))


def test_generation_and_switched_off_adapters_compute_as_before() -> None:
    model, stock = tiny().eval(), tiny().eval()
    fuse(model)
    ids = rows(1, 5)
    mine = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=True)
    theirs = stock.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=True)
    assert mine.tolist() == theirs.tolist()
    with model.disable_adapter(), stock.disable_adapter(), torch.no_grad():
        pair = [m(input_ids=rows(), labels=rows()).loss.item() for m in (model, stock)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-5)
    assert torch.allclose(model(rows()).logits, stock(rows()).logits, atol=1e-5)


def test_second_backward_is_refused() -> None:
    model = tiny()
    fuse(model)
    loss = model(input_ids=rows(), labels=rows()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward"):
        loss.backward()


def test_what_cannot_be_fused_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="DoraLinearVariant"):
        fuse(tiny(use_dora=True))
    with pytest.raises(ConfigurationError, match="lora_bias"):
        fuse(tiny(lora_bias=True))
    trained = tiny()
    trained.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(ConfigurationError, match=r"model\.norm\.weight"):
        fuse(trained)
    with pytest.raises(ConfigurationError, match="families llama"):
        fuse(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match="ZeRO-3"):
        fuse(tiny(), FusedPieces(), "zero3")
    with pytest.raises(ConfigurationError, match="merged_projections"):
        fuse(tiny(), FusedPieces(), "fsdp")
    with pytest.raises(ConfigurationError, match="distributed"):
        fuse(tiny(), None, "pipeline")
