"""Predicted and measured peak memory of serving and of LoRA training, random weights, no network.

    PYTHONPATH=src python benchmarks/memory_check.py --out benchmarks/records/h100-memory.json

Serving: the engine as it starts, with a cache of ``--kv-tokens``; what torch's allocator held at
its peak against the forecast's parts that go through it, and how much of the device is in use
against the whole forecast. Training: a few steps of the fine-tuner's own model and loop, fused and
stock, against the plan's parts that go through the allocator. Each part runs in a process of its
own, so that none sees what another has left behind.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import torch
from peft import LoraConfig, get_peft_model

from headrace.benchmark.finetuning.loop import TrainingLoop
from headrace.benchmark.finetuning.workloads import Workload
from headrace.benchmark.provenance import gpu_driver, versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.hf_checkpoint import HuggingFaceCheckpoint
from headrace.checkpoint.shapes import shape
from headrace.engine.build import build_engine_from
from headrace.engine.memory_forecast import forecast_serving
from headrace.engine.settings import EngineSettings
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.base_precision.random_weights import random_base
from headrace.finetuning.fused.apply import fuse
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.memory_plan import plan_memory
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload

GIB = 2**30
TRAINING = ("2x448", "1x4096", "4x4096:checkpointed", "1x4096:fp8", "1x4096:4bit", "2x448:stock")
_OUTSIDE = ("reserve", "context", "process")
"""Parts of the serving forecast that torch's allocator does not count."""


def check_serving(name: str, kv_tokens: int) -> list[Row]:
    """Start an engine and compare."""
    config = shape(name)
    device = torch.device("cuda", torch.cuda.current_device())
    settings = EngineSettings(
        random_weights_seed=0, max_batch_total_tokens=kv_tokens, device="cuda", dtype="bfloat16"
    )
    total = torch.cuda.mem_get_info(device)[1]
    forecast = forecast_serving(config, settings, device_bytes=total, on_gpu=True)
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(config_json(config)))
        engine, ready = build_engine_from(HuggingFaceCheckpoint(name, Path(directory)), settings)
    free, total = torch.cuda.mem_get_info(device)
    for part in forecast.parts:
        print(f"  {part.name:<24}{part.bytes / GIB:8.3f}  {part.how}")
    print(f"  {'KV cache':<24}{forecast.cache_bytes / GIB:8.3f}  {ready.max_batch_total_tokens:,}")
    inside = forecast.cache_bytes + sum(
        part.bytes for part in forecast.parts if part.name not in _OUTSIDE
    )
    rows = compared("serving, allocated", inside, torch.cuda.max_memory_allocated(device))
    rows += compared("serving, device in use", forecast.total_bytes, total - free)
    print(f"  reserved by torch {torch.cuda.max_memory_reserved(device) / GIB:.3f} GiB")
    del engine
    gc.collect()
    return rows


def check_training(name: str, case: str) -> list[Row]:
    """Train a few steps and compare."""
    size, _, options = case.partition(":")
    rows, row_tokens = map(int, size.split("x"))
    words = options.split(",") if options else []
    precision = BasePrecision(next((w for w in words if w in ("fp8", "4bit")), "bf16"))
    stock, checkpointed = "stock" in words, "checkpointed" in words
    config, device = shape(name), torch.device("cuda", torch.cuda.current_device())
    workload = TrainingWorkload(
        rows=rows,
        row_tokens=row_tokens,
        base_precision=str(precision),
        gradient_checkpointing=checkpointed,
        fused=UNFUSED if stock else FusedPieces(),
        dropout=0.1,
        autocast=not stock,
    )
    plan = plan_memory(config, workload, Placement.SINGLE, 1)
    base = random_base(config, precision, device, 0, keep_transposed=False)
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(base, lora)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if not stock:
        fuse(model)
    model.train()
    loop = TrainingLoop(model, Workload(rows, row_tokens), config.vocab_size, 3e-3, 0)
    gc.collect()
    torch.cuda.empty_cache()
    measured = loop.time(2, 3).peak_gib * GIB
    for part in plan.parts:
        print(f"  {part.name:<24}{part.bytes / GIB:8.3f}  {part.how}")
    free, total = torch.cuda.mem_get_info(device)
    found = compared(f"training {case}, allocated", plan.allocated_bytes, round(measured))
    found += compared(f"training {case}, device in use", plan.total_bytes, total - free)
    return found


def compared(what: str, predicted: int, measured: int) -> list[Row]:
    """Print one line; rows of both figures and of their difference in percent."""
    off = 100 * (predicted - measured) / measured
    print(
        f"{what}: predicted {predicted / GIB:.3f}, measured {measured / GIB:.3f} GiB, {off:+.1f} %"
    )
    facts = {"weights": "bf16", "conditions": {"of": what}}
    return [
        median_row("peak_memory_gib", [measured / GIB], "GiB", **facts),
        median_row("predicted_memory_gib", [predicted / GIB], "GiB", **facts),
        median_row("prediction_error_percent", [off], "%", **facts),
    ]


def main() -> int:
    """Run every part in its own process, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama3-8b")
    parser.add_argument("--kv-tokens", type=int, default=65536)
    parser.add_argument("--training", nargs="*", default=TRAINING, help="ROWSxTOKENS[:WORD,WORD]")
    parser.add_argument("--no-serving", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        if arguments.part == "serving":
            rows = check_serving(arguments.shape, arguments.kv_tokens)
        else:
            rows = check_training(arguments.shape, arguments.part)
        arguments.out.write_bytes(msgspec.json.encode(rows))
        return 0
    rows, failed = [], []
    for part in ([] if arguments.no_serving else ["serving"]) + list(arguments.training):
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            answer = Path(directory) / "rows.json"
            command = [sys.executable, __file__, "--part", part, "--out", str(answer)]
            command += ["--shape", arguments.shape, "--kv-tokens", str(arguments.kv_tokens)]
            if subprocess.run(command, check=False).returncode == 0:
                rows += msgspec.json.decode(answer.read_bytes(), type=list[Row])
            else:
                failed.append(part)
    if arguments.out and rows:
        own_record(
            torch.cuda.get_device_name(),
            rows,
            versions_of("torch", "triton", "transformers", "peft"),
            driver=gpu_driver(),
            seed=0,
            model=arguments.shape,
        ).write(arguments.out)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
