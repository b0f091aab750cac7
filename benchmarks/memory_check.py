"""Predicted and measured peak memory of serving and of LoRA training, random weights, no network.

    PYTHONPATH=src python benchmarks/memory_check.py --out benchmarks/records/h100-memory.json
    python benchmarks/memory_check.py --device cpu --out benchmarks/records/cpu-zen4-memory.json

Each part runs in a process of its own. What is in use of the device (on a CPU the process's
resident memory) is sampled from its start to its end; the largest sample is set against the whole
forecast, and torch's peak allocation against the parts that go through its allocator.

Serving: the engine starts with a cache of ``--kv-tokens`` and then generates as many tokens as the
cache holds: full batches that ask the sampler for everything, then long prompts with
log-probabilities. Training: a few steps of the fine-tuner's own model and loop, fused and stock.
"""

from __future__ import annotations

import argparse
import gc
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from headrace import LLM, SamplingParams
from headrace.benchmark.measured_device import MeasuredDevice
from headrace.benchmark.memory_checks import allocated_bytes
from headrace.benchmark.memory_watch import MemoryWatch, gpu_bytes, process_bytes
from headrace.benchmark.offline.stand_in import stand_in_directory
from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import shape
from headrace.checkpoint.sizes import stored_bytes
from headrace.engine.memory_forecast import forecast_serving
from headrace.engine.settings import EngineSettings
from headrace.hardware.device import resolve_device

GIB = 2**30
GPU_TRAINING = (
    "2x448",
    "1x4096",
    "4x4096:checkpointed",
    "1x4096:fp8",
    "1x4096:4bit",
    "2x448:stock",
)
CPU_TRAINING = ("2x448", "1x1024:checkpointed", "2x448:stock")
EVERYTHING = SamplingParams(
    max_new_tokens=16, ignore_eos=True, do_sample=True, temperature=0.7, top_k=50, top_p=0.9,
    typical_p=0.95, repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1,
    logprobs=True, top_n_tokens=5, seed=0,
)  # fmt: skip
PROMPT_LOGPROBS = SamplingParams(max_new_tokens=4, ignore_eos=True, decoder_input_details=True)


def check_serving(name: str, kv_tokens: int, on_gpu: bool, in_use: Callable[[], int]) -> list[Row]:
    """Start an engine, load it, and compare.

    On a CPU the built-in model is served as its file packs it; on a GPU the shape ``name``.
    """
    settings = EngineSettings(max_batch_total_tokens=kv_tokens)
    config, stored = shape(name), None
    if not on_gpu:
        checkpoint = resolve(None)
        config, stored = checkpoint.config, stored_bytes(checkpoint.config, checkpoint.tensors)
    device = resolve_device("cuda" if on_gpu else "cpu")
    with MemoryWatch(in_use) as watch:
        if on_gpu:
            with stand_in_directory(config) as directory:
                llm = LLM(
                    directory,
                    random_weights_seed=0,
                    max_batch_total_tokens=kv_tokens,
                    device="cuda",
                    dtype="bfloat16",
                )
        else:
            llm = LLM(max_batch_total_tokens=kv_tokens, device="cpu")
        ready = watch.peak_bytes
        serve(llm, kv_tokens)
    print(
        f"  in use at most {ready / GIB:.3f} GiB until ready, {watch.peak_bytes / GIB:.3f} GiB then"
    )
    total = torch.cuda.mem_get_info(device)[1] if on_gpu else 64 * GIB
    forecast = forecast_serving(
        config, settings, device_bytes=total, on_gpu=on_gpu, stored_weight_bytes=stored
    )
    for part in forecast.parts:
        print(f"  {part.name:<24}{part.bytes / GIB:8.3f}  {part.how}")
    print(f"  {'KV cache':<24}{forecast.cache_bytes / GIB:8.3f}  {kv_tokens:,} tokens")
    rows = compared(
        f"serving {kv_tokens} tokens of KV cache, in use", forecast.total_bytes, watch.peak_bytes
    )
    if on_gpu:
        rows += compared(
            f"serving {kv_tokens} tokens of KV cache, allocated",
            allocated_bytes(forecast),
            torch.cuda.max_memory_allocated(device),
        )
        print(f"  torch's allocator held {torch.cuda.max_memory_reserved(device) / GIB:.3f} GiB")
    return rows


def serve(llm: LLM, kv_tokens: int) -> None:
    """Fill the cache: full batches with every sampler on, then long prompts with logprobs."""
    stream = random.Random(0)
    ready = llm.ready

    def prompts(count: int, length: int) -> list[list[int]]:
        return [
            [stream.randrange(10, ready.vocab_size) for _ in range(length)] for _ in range(count)
        ]

    each = min(kv_tokens // ready.max_batch_size, ready.max_total_tokens) - 16
    llm.generate(prompts(ready.max_batch_size, max(each, 1)), EVERYTHING, progress=False)
    longest = min(kv_tokens, ready.max_total_tokens) - 4
    llm.generate(prompts(2, longest), PROMPT_LOGPROBS, progress=False)


def check_training(name: str, case: str, on_gpu: bool, in_use: Callable[[], int]) -> list[Row]:
    """Train a few steps and compare."""
    from peft import LoraConfig, get_peft_model

    from headrace.benchmark.finetuning.loop import TrainingLoop
    from headrace.benchmark.finetuning.workloads import Workload
    from headrace.finetuning.base_precision.convert import converter
    from headrace.finetuning.base_precision.precision import BasePrecision
    from headrace.finetuning.base_precision.random_weights import random_base
    from headrace.finetuning.fused.apply import fuse
    from headrace.finetuning.fused.pieces import FusedPieces
    from headrace.finetuning.placement.memory_plan import plan_memory
    from headrace.finetuning.placement.placements import Placement
    from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload

    size, _, options = case.partition(":")
    rows, row_tokens = map(int, size.split("x"))
    words = options.split(",") if options else []
    precision = BasePrecision(next((w for w in words if w in ("fp8", "4bit")), "bf16"))
    stock, checkpointed = "stock" in words, "checkpointed" in words
    config, device = shape(name), resolve_device("cuda" if on_gpu else "cpu")
    workload = TrainingWorkload(
        rows=rows,
        row_tokens=row_tokens,
        base_precision=str(precision),
        gradient_checkpointing=checkpointed,
        fused=UNFUSED if stock else FusedPieces(),
        dropout=0.1,
        autocast=not stock,
        on_gpu=on_gpu,
    )
    plan = plan_memory(config, workload, Placement.SINGLE, 1)
    with MemoryWatch(in_use) as loading:
        base = random_base(config, converter(precision, keep_transposed=False), device, 0)
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
        if on_gpu:
            torch.cuda.empty_cache()
    with MemoryWatch(in_use) as watch:
        measured = loop.time(2, 3).peak_gib * GIB
    print(f"  in use at most {loading.peak_bytes / GIB:.3f} GiB while loading")
    for part in plan.parts:
        print(f"  {part.name:<24}{part.bytes / GIB:8.3f}  {part.how}")
    found = compared(f"training {case}, in use", plan.total_bytes, watch.peak_bytes)
    if on_gpu:
        found += compared(f"training {case}, allocated", plan.allocated_bytes, round(measured))
        print(f"  torch's allocator held {torch.cuda.max_memory_reserved(device) / GIB:.3f} GiB")
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--shape", help="[llama3-8b on a GPU, smollm2-135m on a CPU]")
    parser.add_argument("--kv-tokens", type=int, help="[65536 on a GPU, 8192 on a CPU]")
    parser.add_argument("--training", nargs="*", help="ROWSxTOKENS[:WORD,WORD]")
    parser.add_argument("--no-serving", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    name = arguments.shape or ("llama3-8b" if on_gpu else "smollm2-135m")
    kv_tokens = arguments.kv_tokens or (65536 if on_gpu else 8192)
    if arguments.part:
        in_use = gpu_bytes() if on_gpu else process_bytes()
        if arguments.part == "serving":
            rows = check_serving(name, kv_tokens, on_gpu, in_use)
        else:
            rows = check_training(name, arguments.part, on_gpu, in_use)
        arguments.out.write_bytes(msgspec.json.encode(rows))
        return 0
    training = arguments.training
    if training is None:
        training = GPU_TRAINING if on_gpu else CPU_TRAINING
    rows, failed = [], []
    for part in ([] if arguments.no_serving else ["serving"]) + list(training):
        print(f"== {part}", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            answer = Path(directory) / "rows.json"
            command = [sys.executable, __file__, "--part", part, "--out", str(answer)]
            command += ["--device", device, "--shape", name, "--kv-tokens", str(kv_tokens)]
            if subprocess.run(command, check=False).returncode == 0:
                rows += msgspec.json.decode(answer.read_bytes(), type=list[Row])
            else:
                failed.append(part)
    if arguments.out and rows:
        measured = MeasuredDevice(resolve_device(device))
        own_record(
            measured.name,
            rows,
            measured.versions() | versions_of("transformers", "peft"),
            driver=measured.driver,
            seed=0,
            model=name,
        ).write(arguments.out)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
