"""The memory plan: published and measured figures, placements, the reference workload's report."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from headrace.checkpoint.shapes import shape
from headrace.finetuning import devices
from headrace.finetuning.placement.choose import choose_placement
from headrace.finetuning.placement.effective_pieces import effective_pieces
from headrace.finetuning.placement.memory_plan import plan_memory
from headrace.finetuning.placement.parameter_counts import adapter_parameters, count_parameters
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.report import REFERENCE_TARGETS, best_plan, print_report
from headrace.finetuning.placement.workload import UNFUSED, FusedPieces, TrainingWorkload
from headrace.finetuning.settings import FinetuneSettings
from headrace.hardware.known_devices import KNOWN_DEVICES, known_device
from headrace.link.errors import ConfigurationError

GIB = 2**30
REFERENCE = TrainingWorkload(rows=2, row_tokens=448, dropout=0.1)


def test_the_reference_workload_has_exactly_the_stated_parameters():
    counts = count_parameters(shape("llama3-70b"), 8, ("q_proj", "v_proj"))
    assert (counts.trainable, counts.frozen, counts.total) == (
        16_384_000,
        70_553_706_496,
        70_570_090_496,
    )


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("all-linear",), ("down_proj",)])
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b"])
def test_adapters_are_counted_as_peft_makes_them(name, targets):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from headrace.checkpoint.config_json import config_json

    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_json(shape(name))))
        chosen = "all-linear" if targets == ("all-linear",) else list(targets)
        model = get_peft_model(base, LoraConfig(r=4, target_modules=chosen, task_type="CAUSAL_LM"))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape(name), 4, targets) == trainable


@pytest.mark.parametrize(
    ("rows", "row_tokens", "checkpointing", "measured_gib"),
    [(2, 448, False, 21.2), (8, 448, False, 39.4), (1, 4096, False, 42.9), (4, 4096, True, 42.8)],
)
def test_stock_training_takes_what_was_measured_on_an_h100(
    rows, row_tokens, checkpointing, measured_gib
):
    # Stock PEFT 0.21 and Transformers 5.17, Llama-3-8B shape, r=8 on q and v, one H100 80 GB.
    workload = TrainingWorkload(
        rows=rows,
        row_tokens=row_tokens,
        gradient_checkpointing=checkpointing,
        fused=UNFUSED,
        dropout=0.1,
        autocast=False,
    )
    plan = plan_memory(shape("llama3-8b"), workload, Placement.SINGLE, 1)
    assert plan.allocated_bytes / GIB == pytest.approx(measured_gib, rel=0.01)


def test_one_device_then_ddp_then_fsdp2():
    config, enough, little = shape("llama3-8b"), 80 * GIB, 14 * GIB
    assert choose_placement(config, REFERENCE, enough, 1).placement is Placement.SINGLE
    assert choose_placement(config, REFERENCE, enough, 4).placement is Placement.DDP
    sharded = choose_placement(config, REFERENCE, little, 4)
    assert sharded.placement is Placement.FSDP2
    assert sharded.fits(little)
    # A layer gathered one at a time leaves less than FSDP2's three where layers are large.
    large = choose_placement(shape("llama3-405b"), REFERENCE, 10**15, 8, Placement.ZERO3)
    fsdp2 = choose_placement(shape("llama3-405b"), REFERENCE, 10**15, 8, Placement.FSDP2)
    between = (large.total_bytes + fsdp2.total_bytes) // 2
    assert choose_placement(shape("llama3-405b"), REFERENCE, between, 8).placement is (
        Placement.ZERO3
    )


@pytest.mark.parametrize("placement", list(Placement))
def test_every_placement_can_be_forced(placement):
    plan = choose_placement(shape("llama3-70b"), REFERENCE, GIB, 4, placement)
    assert plan.placement is placement
    assert plan.devices == (1 if placement is Placement.SINGLE else 4)
    assert not plan.fits(GIB)
    assert plan.total_bytes == sum(part.bytes for part in plan.parts)


def test_what_fits_nowhere_is_refused_with_the_need_and_what_would_help():
    with pytest.raises(ConfigurationError, match=r"needs 1\d\d\.\d GiB .* 79\.6 GiB; it may fit"):
        choose_placement(shape("llama3-70b"), REFERENCE, known_device("h100").memory_bytes, 1)


def test_sharding_divides_the_weights_and_limits_what_is_fused():
    config = shape("llama3-70b")
    whole = plan_memory(config, REFERENCE, Placement.DDP, 8).parts[0].bytes
    assert plan_memory(config, REFERENCE, Placement.FSDP2, 8).parts[0].bytes == whole // 8
    assert not effective_pieces(config, FusedPieces(), Placement.FSDP2).cross_entropy
    assert not effective_pieces(config, FusedPieces(), Placement.ZERO3).decoder_layer
    assert effective_pieces(shape("qwen3-8b"), FusedPieces(), Placement.SINGLE) == UNFUSED


def test_less_is_held_with_checkpointing_fewer_bits_and_fused_pieces():
    config = shape("llama3-8b")

    def total(**changes: object) -> int:
        workload = dataclasses.replace(REFERENCE, **changes)
        return plan_memory(config, workload, Placement.SINGLE, 1).total_bytes

    assert total(gradient_checkpointing=True) < total() < total(fused=UNFUSED)
    assert total(base_precision="4bit") < total(base_precision="fp8") < total()
    assert total(base_precision="fp8", fp8_transposed=True) > total(base_precision="fp8")


def test_the_report_prints_counts_devices_and_verdicts(capsys):
    print_report(Console(width=140, highlight=False), shape("llama3-70b"), REFERENCE)
    out = capsys.readouterr().out
    for words in ("16,384,000", "70,553,706,496", "70,570,090,496", "192.0 GiB", "140.4 GiB"):
        assert words in out
    rows = {line.split("(")[0].strip(): line for line in out.splitlines() if "GiB)" in line}
    assert rows["1 × NVIDIA H100 SXM 80 GB"].count("does not fit") == 2  # bf16 and FP8
    assert rows["1 × AMD Instinct MI300X 192 GB"].count("fits, single") == 3
    assert "fits, ddp" in rows["8 × AMD Instinct MI300X 192 GB"]


def test_verdicts_of_the_reference_devices():
    config = shape("llama3-70b")
    fits = {
        (target.device.name, target.count, precision, checkpointing): best_plan(
            config,
            dataclasses.replace(
                REFERENCE, base_precision=precision, gradient_checkpointing=checkpointing
            ),
            target.device.memory_bytes,
            target.count,
        ).fits(target.device.memory_bytes)
        for target in REFERENCE_TARGETS
        for precision in ("bf16", "fp8", "4bit")
        for checkpointing in (False, True)
    }
    # 131.4 GiB of weights: too much for an H100, tight on an H200.
    assert not fits["h100", 1, "bf16", True]
    assert fits["h200", 1, "bf16", True]
    assert fits["h100", 1, "fp8", True]
    assert fits["h100", 1, "4bit", False]
    assert all(value for (device, *_), value in fits.items() if device == "mi300x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 0}, "`rows` must be at least 1, got 0"),
        ({"base_precision": "int3"}, "one of bf16, fp32, fp8, 4bit, got `int3`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"adapter_dtype": "fp8"}, "`adapter_dtype`"),
        ({"target_modules": ()}, "`target_modules`"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ConfigurationError, match=words):
        dataclasses.replace(REFERENCE, **changes)


def test_unknown_targets_and_devices_are_refused_with_what_there_is():
    with pytest.raises(ConfigurationError, match=r"`query_key` matches nothing .* q_proj, k_proj"):
        count_parameters(shape("llama3-8b"), 8, ("query_key",))
    with pytest.raises(ConfigurationError, match="`mi9000`; there are mi300x"):
        known_device("mi9000")
    assert all(device.source for device in KNOWN_DEVICES.values())


def test_a_base_in_float32_takes_four_bytes_a_parameter():
    config = shape("smollm2-135m")
    workload = dataclasses.replace(REFERENCE, base_precision="fp32")
    weights, *_ = plan_memory(config, workload, Placement.SINGLE, 1).parts
    assert weights.bytes == 4 * count_parameters(config, 8, ("q_proj",)).frozen
    assert weights.how == "4 bytes a parameter"


@pytest.mark.parametrize(("multiplies", "base"), [(True, "bf16"), (False, "fp32")])
def test_the_base_is_in_float32_where_bfloat16_is_slow(monkeypatch, capsys, multiplies, base):
    monkeypatch.setattr(devices, "multiplies_bfloat16", lambda device: multiplies)
    settings = FinetuneSettings(data="rows.jsonl", device="cpu")
    decided = devices.decide_placement(settings, shape("smollm2-135m"), 64, Console())
    assert decided.base_precision == base
    assert ("held in float32" in capsys.readouterr().out) is not multiplies
