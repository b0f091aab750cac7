"""The serving forecast as a table, and as plain data."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from headrace.engine.memory_forecast import ServingForecast
from headrace.finetuning.placement.memory_plan import MemoryPlan

GIB = 2**30


def serving_table(forecast: ServingForecast) -> Table:
    """Each part's bytes on one device and the arithmetic, then what is left for keys and values."""
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    where = "one device" if forecast.shards == 1 else f"each of {forecast.shards} devices"
    table.add_column(f"on {where}", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("how", overflow="fold")
    for part in forecast.parts:
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", part.how)
    left = f"{forecast.device_bytes / GIB:.2f} - {forecast.fixed_bytes / GIB:.2f}"
    table.add_row("left for the KV cache", f"{forecast.left_bytes / GIB:.2f}", left)
    if forecast.cache is not None:
        how = f"{forecast.cache.tokens:,} tokens × {forecast.token_bytes:,} bytes"
        table.add_row("KV cache", f"{forecast.cache_bytes / GIB:.2f}", how)
    return table


def serving_verdict(forecast: ServingForecast) -> str:
    """One line: whether it fits, and how many tokens of cache remain."""
    cache = forecast.cache
    if forecast.left_bytes < 0:
        return (
            f"does not fit: {forecast.fixed_bytes / GIB:.2f} GiB are needed before any KV cache, "
            f"a device has {forecast.device_bytes / GIB:.2f} GiB"
        )
    if cache is None:
        return f"does not fit: {forecast.refusal}"
    return (
        f"fits: {cache.tokens:,} tokens of KV cache ({cache.reason}), "
        f"sequences of up to {cache.max_total_tokens:,} tokens"
    )


def serving_data(forecast: ServingForecast) -> dict[str, Any]:
    """For ``--json``."""
    cache = forecast.cache
    return {
        "fits": cache is not None,
        "reason": forecast.refusal if cache is None else cache.reason,
        "devices": forecast.shards,
        "device_bytes": forecast.device_bytes,
        "parts": {part.name: part.bytes for part in forecast.parts},
        "bytes_left": forecast.left_bytes,
        "kv_bytes_per_token": forecast.token_bytes,
        "kv_tokens": 0 if cache is None else cache.tokens,
        "max_total_tokens": 0 if cache is None else cache.max_total_tokens,
        "total_bytes": forecast.total_bytes,
    }


def training_data(plan: MemoryPlan, device_bytes: int) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "fits": plan.fits(device_bytes),
        "placement": str(plan.placement),
        "devices": plan.devices,
        "device_bytes": device_bytes,
        "trainable_parameters": plan.parameters.trainable,
        "frozen_parameters": plan.parameters.frozen,
        "parts": {part.name: part.bytes for part in plan.parts},
        "peak": plan.peak,
        "total_bytes": plan.total_bytes,
    }
