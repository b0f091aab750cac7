"""Frozen bases in FP8 and 4-bit: close to bf16, differentiable, converted while they are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from headrace.benchmark.finetuning.stock_four_bit import as_loaded_in_4_bits, bitsandbytes_linear
from headrace.benchmark.finetuning.workloads import Workload
from headrace.checkpoint.hf_config import hf_config
from headrace.checkpoint.resolve import resolve
from headrace.cli.main import main
from headrace.finetuning.base_precision.convert import convert_base, converter
from headrace.finetuning.base_precision.four_bit import Nf4Linear
from headrace.finetuning.base_precision.fp8 import Fp8Linear
from headrace.finetuning.base_precision.load import load_base
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.fused.apply import fuse
from headrace.link.errors import ConfigurationError

CPU = torch.device("cpu")
WORST = {BasePrecision.FP8: 0.04, BasePrecision.NF4: 0.12}


def base(width: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def rows() -> torch.Tensor:
    return torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(1))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    fuse(adapted)
    adapted(input_ids=rows(), labels=rows()).loss.backward()
    return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("precision", WORST)
@pytest.mark.parametrize("keep_transposed", [True, False])
def test_gradients_stay_near_the_full_precision_ones(
    precision: BasePrecision, keep_transposed: bool
) -> None:
    model = base()
    convert_base(model, converter(precision, keep_transposed))
    expected, found = gradients(base()), gradients(model)
    for name, grad in expected.items():
        assert float((found[name] - grad).norm() / grad.norm()) < 3 * WORST[precision], name


@pytest.mark.parametrize(
    ("precision", "kind"), [(BasePrecision.FP8, Fp8Linear), (BasePrecision.NF4, Nf4Linear)]
)
def test_unfused_linear_computes_with_its_own_weight(precision: BasePrecision, kind: Any) -> None:
    weight, x = torch.randn(48, 64), torch.randn(5, 64, requires_grad=True)
    linear = kind.quantize(weight)
    kept = linear.dequantized(torch.float32)
    assert float((kept - weight).norm() / weight.norm()) < WORST[precision]
    out = linear(x)
    assert float((out - x @ kept.t()).detach().norm() / out.detach().norm()) < 0.04
    out.sum().backward()
    expected = kept.sum(0).expand(5, -1)
    assert float((x.grad - expected).norm() / expected.norm()) < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_4_bits_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = (0.02 * torch.randn(256, 320)).to(dtype)
    weight[3, 64:128] = 0
    weight[7] *= 100
    theirs, state = quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
    ours = Nf4Linear.quantize(weight)
    assert torch.equal(ours.weight, theirs.flatten())
    assert torch.equal(ours.peaks, state.absmax)
    assert torch.equal(ours.dequantized(dtype), dequantize_4bit(theirs, state))


def test_fused_layers_compute_over_bitsandbytes_linears_as_over_ours() -> None:
    ours, theirs = base(), base()
    convert_base(ours, converter(BasePrecision.NF4))
    convert_base(theirs, bitsandbytes_linear)
    expected, found = gradients(ours), gradients(as_loaded_in_4_bits(theirs))
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name


@pytest.mark.parametrize("precision", list(BasePrecision))
def test_loading_converts_what_conversion_converts(
    precision: BasePrecision, tmp_path: Path
) -> None:
    model = base()
    model.save_pretrained(tmp_path)
    loaded = load_base(resolve(str(tmp_path)), converter(precision), CPU, torch.float32)
    convert_base(model, converter(precision))
    with torch.no_grad():
        difference = loaded(rows()).logits - model(rows()).logits
    assert float(difference.abs().max()) < 1e-5
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="divisible by 64"):
        convert_base(base(width=32), converter(BasePrecision.NF4))


@pytest.mark.parametrize("precision", ["bf16", "4bit"])
def test_bench_writes_a_record_for_each_system(tmp_path: Path, precision: str) -> None:
    model, out = tmp_path / "tiny", tmp_path / "records"
    base().save_pretrained(model)
    arguments = ["--row-tokens", "16", "--steps", "2", "--warmups", "1", "--device", "cpu"]
    arguments += ["--trainer", "--base-precision", precision]
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "finetune", str(model), *arguments, "--out", str(out)])
    assert stopped.value.code == 0
    records = [json.loads(path.read_text()) for path in out.iterdir()]
    assert {record["system"] for record in records} == {"headrace", "peft"}
    for record in records:
        metrics = {row["metric"]: row for row in record["rows"]}
        assert len(metrics["train_step_ms"]["samples"]) == 2
        step = metrics["train_step_ms"]["samples"][0]
        assert ("trainer_step_ms" in metrics) == (record["system"] == "headrace")
        assert metrics["train_tokens_per_s"]["samples"][0] == pytest.approx(32 / step * 1e3)


def test_bench_refuses_rows_that_are_longer_than_the_model(tmp_path: Path, capsys) -> None:
    arguments = ["--random-weights", "--row-tokens", "9000", "--out", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "finetune", "smollm2-135m", *arguments])
    assert stopped.value.code == 2
    said = "headrace: rows of 9000 tokens exceed the 8192 positions of smollm2-135m\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())


def test_model_flops_of_the_reference_workload() -> None:
    raw = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    }  # fmt: skip
    flops = Workload(2, 448).model_flops(hf_config(raw, Path("config.json")))
    assert flops / 778e12 == pytest.approx(0.035, rel=0.03)
