"""Recorded peaks of memory beside what the forecasts of today say of the same runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.benchmark.record import Record, Row, load_record
from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import shape
from headrace.checkpoint.sizes import stored_bytes
from headrace.engine.memory_forecast import ServingForecast, forecast_serving
from headrace.engine.settings import EngineSettings
from headrace.finetuning.fused.pieces import FusedPieces
from headrace.finetuning.placement.memory_plan import MemoryPlan, plan_memory
from headrace.finetuning.placement.placements import Placement
from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload

_TRAINING = re.compile(r"training (\d+)x(\d+)(?::([a-z0-9,]+))?, (.+)")
_SERVING = re.compile(r"serving (\d+) tokens of KV cache, (.+)")
_OUTSIDE_ALLOCATOR = ("context", "process", "reserve")
_ENOUGH = 2**50


class MemoryCheck(NamedTuple):
    """One peak.

    Attributes:
        device: Short name.
        of: The run, and what was read: ``allocated`` or ``in use``.
        measured: Bytes.
        predicted: Bytes, by the formulas as they are now.
    """

    device: str
    of: str
    measured: int
    predicted: int


def memory_checks(directory: Path) -> Iterator[MemoryCheck]:
    """Every peak that can be predicted, of the records ``*-memory*`` and ``*-finetune*``."""
    paths = [path for kind in ("memory", "finetune") for path in directory.glob(f"*-{kind}*.json")]
    for path in sorted(paths):
        record = load_record(path)
        # The file says which processor it was: its name does not tell a Zen 3 from a Zen 4.
        device = re.split("-memory|-finetune", path.name)[0]
        on_gpu = not device.startswith("cpu")
        name = device.upper() if on_gpu else device
        for row in record.rows:
            if row.metric != "peak_memory_gib":
                continue
            of = str(row.conditions.get("of") or _training_case(record, row))
            predicted = _predict(record, of, on_gpu)
            if predicted is not None:
                yield MemoryCheck(f"{name}, {record.model}", of, _bytes(row), predicted)


def _bytes(row: Row) -> int:
    return round(row.value * 2**30)


def _training_case(record: Record, row: Row) -> str:
    """A row of ``bench finetune``, as ``memory_check.py`` names its own."""
    words: list[str] = [word for word in ("fp8", "4bit") if row.weights == word]
    words += ["checkpointed"] if row.conditions.get("checkpointing") else []
    words += ["stock"] if record.system == "peft" else []
    if row.weights == "fp8" and "--small-memory" not in record.command:
        words.append("transposed")
    case = f"{row.batch}x{row.context}" + (":" + ",".join(words) if words else "")
    return f"training {case}, allocated"


def _predict(record: Record, of: str, on_gpu: bool) -> int | None:
    if found := _SERVING.fullmatch(of):
        return _serving(record.model, int(found[1]), found[2], on_gpu)
    if found := _TRAINING.fullmatch(of):
        words = (found[3] or "").split(",")
        plan = _plan(str(record.model), int(found[1]), int(found[2]), words, on_gpu)
        return _training(plan, found[4])
    return None


def _serving(model: str | None, kv_tokens: int, what: str, on_gpu: bool) -> int:
    settings = EngineSettings(max_batch_total_tokens=kv_tokens)
    config, stored = shape(str(model)), None
    if not on_gpu:
        checkpoint = resolve(None)
        config, stored = checkpoint.config, stored_bytes(checkpoint.config, checkpoint.tensors)
    forecast = forecast_serving(
        config, settings, device_bytes=_ENOUGH, on_gpu=on_gpu, stored_weight_bytes=stored
    )
    if what == "allocated":
        return allocated_bytes(forecast)
    return forecast.total_bytes


def allocated_bytes(forecast: ServingForecast) -> int:
    """Of the parts that go through torch's allocator, the cache among them."""
    parts = (part.bytes for part in forecast.parts if part.name not in _OUTSIDE_ALLOCATOR)
    return forecast.cache_bytes + sum(parts)


def _plan(model: str, rows: int, row_tokens: int, words: list[str], on_gpu: bool) -> MemoryPlan:
    stock = "stock" in words
    workload = TrainingWorkload(
        rows=rows,
        row_tokens=row_tokens,
        base_precision=next((word for word in words if word in ("fp8", "4bit")), "bf16"),
        gradient_checkpointing="checkpointed" in words,
        fused=UNFUSED if stock else FusedPieces(),
        dropout=0.1,
        autocast=not stock,
        fp8_transposed="transposed" in words,
        on_gpu=on_gpu,
    )
    return plan_memory(shape(model), workload, Placement.SINGLE, 1)


def _training(plan: MemoryPlan, what: str) -> int:
    return plan.allocated_bytes if what == "allocated" else plan.total_bytes
