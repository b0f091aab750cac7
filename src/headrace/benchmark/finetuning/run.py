"""A whole run of the benchmark: base, measurements, table, records."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from transformers import PreTrainedModel

from headrace.benchmark.finetuning.compare import (
    OURS,
    AdapterOptions,
    Bench,
    check_losses,
)
from headrace.benchmark.finetuning.rows import comparison_table, rows_of
from headrace.benchmark.finetuning.workloads import Workload
from headrace.benchmark.provenance import gpu_driver, versions_of
from headrace.benchmark.record import own_record, record_path
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.hf_config import hf_config
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import find_shape
from headrace.finetuning.base_precision.convert import Converter
from headrace.finetuning.base_precision.load import load_base
from headrace.finetuning.base_precision.random_weights import random_base
from headrace.hardware.processor import processor
from headrace.link.errors import ConfigurationError

_PACKAGES = ("torch", "triton", "transformers", "peft", "bitsandbytes", "numpy")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What ``headrace bench finetune`` was asked for.

    Attributes:
        model: Directory or built-in shape.
        random_weights: Draw the weights from ``seed``.
        workloads: In the order of their report.
        adapters: Sizes and learning rate.
        stock: Measure stock PEFT too.
        keep_transposed: FP8: see ``Fp8Linear``.
        warmups: Steps before those that count.
        steps: That count.
        loss_steps: Steps whose losses are compared.
        trainer: Measure the trainer's loop too.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Of everything that is random.
    """

    model: str
    random_weights: bool
    workloads: tuple[Workload, ...]
    adapters: AdapterOptions
    stock: bool
    keep_transposed: bool
    warmups: int
    steps: int
    loss_steps: int
    trainer: bool
    device: str
    seed: int


def _shape(options: BenchOptions) -> ModelConfig:
    if options.random_weights and (found := find_shape(options.model)) is not None:
        return found
    path = Path(options.model) / "config.json"
    if not path.is_file():
        raise ConfigurationError(
            f"{options.model} is neither a directory with a config.json nor, with "
            "--random-weights, a built-in shape"
        )
    try:
        described = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"{path} is no JSON: {error}") from None
    return hf_config(described, path)


def _check_lengths(options: BenchOptions, shape: ModelConfig) -> None:
    longest = max(workload.row_tokens for workload in options.workloads)
    if longest > shape.max_position:
        raise ConfigurationError(
            f"rows of {longest} tokens exceed the {shape.max_position} positions of {options.model}"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigurationError(f"`--device` must be auto, cpu or cuda, got `{name}`")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch sees no GPU here")
    return (
        torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")
    )


def run_bench(options: BenchOptions, out: Path | None, console: Console) -> None:
    """Measure, print the table, write a record for each system.

    Raises:
        ConfigurationError: An option that cannot be, rows longer than the model's positions, or
            losses that differ from stock PEFT's (after the records are written).
    """
    shape, device = _shape(options), _device(options.device)
    _check_lengths(options, shape)
    on_gpu = device.type == "cuda"
    device_name = torch.cuda.get_device_name(device) if on_gpu else processor()
    what = f"finetune-{Path(options.model).name.lower()}"
    # The run would be lost if nothing could be written.
    record_path(out, device_name, what)

    def make_base(title: str, convert: Converter | None) -> PreTrainedModel:
        started = time.perf_counter()
        if options.random_weights:
            base = random_base(shape, convert, device, options.seed)
        else:
            base = load_base(resolve(options.model), convert, device)
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        console.print(f"base in {title} after {seconds:.1f} s")
        return base

    bench = Bench(
        make_base,
        shape.vocab_size,
        options.adapters,
        options.stock,
        options.keep_transposed,
        options.warmups,
        options.steps,
        options.loss_steps,
        options.trainer,
        options.seed,
    )
    measurements = []
    for measurement in bench.measure(options.workloads):
        measurements.append(measurement)
        state = "done" if measurement.times else "out of memory"
        console.print(f"{measurement.system} {measurement.workload.name}: {state}")
    console.print(comparison_table(measurements, shape, device_name))
    driver = gpu_driver() if on_gpu else None
    versions = versions_of(*_PACKAGES)
    for system in dict.fromkeys(measurement.system for measurement in measurements):
        rows = [
            row
            for measurement in measurements
            if measurement.system == system
            for row in rows_of(measurement, shape, options.adapters, device_name)
        ]
        if not rows:
            continue
        record = own_record(
            device_name, rows, versions, driver=driver, seed=options.seed, model=options.model
        )
        name = what
        if system != OURS:
            name += f"-{system}"
            record = msgspec.structs.replace(
                record, system=system, system_version=versions.get(system, "")
            )
        path = record_path(_own_path(out, system), device_name, name)
        record.write(path)
        console.print(f"record: {path}")
    check_losses(measurements)


def _own_path(out: Path | None, system: str) -> Path | None:
    if out is None or system == OURS or out.suffix != ".json" or out.is_dir():
        return out
    return out.with_name(f"{out.stem}-{system}.json")
