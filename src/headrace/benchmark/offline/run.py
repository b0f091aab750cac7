"""A whole run of the benchmark: requests, engine, passes, table, record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console

from headrace import LLM
from headrace.benchmark.measured_device import MeasuredDevice
from headrace.benchmark.measured_model import SHORT_DTYPES, architecture, weights_format
from headrace.benchmark.offline.requests import (
    Lengths,
    OfflineRequest,
    check_lengths,
    conversation_requests,
    random_requests,
)
from headrace.benchmark.offline.stand_in import stand_in_directory
from headrace.benchmark.offline.throughput import generate_all, throughput_rows
from headrace.benchmark.record import Condition, median_row, own_record, record_path
from headrace.benchmark.tables import samples_table
from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.resolve import resolve
from headrace.link.errors import ConfigurationError
from headrace.link.messages import EngineReady


@dataclass(frozen=True, kw_only=True)
class OfflineOptions:
    """What ``headrace bench offline`` was asked for.

    Attributes:
        model: Directory, GGUF file, hub id or built-in shape; ``None``: the built-in model.
        random_weights: Draw the weights from ``seed``.
        requests: Number of them.
        input_tokens: Of random prompts.
        output_tokens: Of random requests; of a dataset's answers the upper end is their most.
        dataset: Conversations in ShareGPT's format instead of random ids.
        tokenizer: Model whose tokenizer encodes the dataset; ``None``: that of ``model``.
        warmups: Passes over all requests before those that count.
        runs: Passes that count.
        engine: Further fields of ``EngineSettings``.
        seed: Of weights and requests.
    """

    model: str | None
    random_weights: bool
    requests: int
    input_tokens: Lengths
    output_tokens: Lengths | None
    dataset: Path | None
    tokenizer: str | None
    warmups: int
    runs: int
    engine: Mapping[str, Any]
    seed: int


_OUTPUT_TOKENS = Lengths(100, 1024)


def run_offline(options: OfflineOptions, out: Path | None, console: Console) -> None:
    """Measure, show, record.

    Raises:
        ConfigurationError: no such model or dataset, a request longer than the model's positions,
            a setting that cannot be: one line, and no record.
    """
    config, checkpoint = architecture(options.model, random_weights=options.random_weights)
    requests, conditions = _requests(options, config, checkpoint)
    check_lengths(requests, config.max_position, "the model")
    with console.status(f"loading {options.model or 'the built-in model'}"):
        llm, ready_seconds = _open(options, config)
    check_lengths(requests, llm.ready.max_total_tokens, "the KV cache")
    measured = MeasuredDevice(torch.device(llm.ready.device))
    name = Path(options.model).name.lower() if options.model else "builtin"
    path = record_path(out, measured.name, f"offline-{name}")
    formats = _formats(options, checkpoint, llm.ready)
    console.print(
        f"{measured.name}, backend {llm.ready.backend}, weights {formats['weights']}: ready in "
        f"{ready_seconds:.1f} s, {llm.ready.max_batch_total_tokens:,} tokens of KV cache"
    )
    tokens = sum(request.new_tokens for request in requests)
    console.print(
        f"{len(requests):,} requests, {conditions['tokens_in']:,} tokens in, {tokens:,} out"
    )
    passes = []
    for number in range(1 - options.warmups, options.runs + 1):
        one = generate_all(llm, requests, progress=console.is_terminal)
        what = f"run {number} of {options.runs}" if number > 0 else "warm-up"
        console.print(f"{what}: {one.seconds:.2f} s, {tokens / one.seconds:,.0f} new tokens/s")
        if number > 0:
            passes.append(one)
    rows = throughput_rows(requests, passes)
    rows += [
        median_row("ready_s", [ready_seconds], "s"),
        median_row("peak_memory_gib", [measured.peak_bytes() / 2**30], "GiB"),
    ]
    rows = [msgspec.structs.replace(row, conditions=conditions, **formats) for row in rows]
    console.print(samples_table(rows))
    own_record(
        measured.name,
        rows,
        measured.versions(),
        driver=measured.driver,
        seed=options.seed,
        model=options.model or "builtin",
    ).write(path)
    console.print(f"record: {path}")


def _requests(
    options: OfflineOptions, config: ModelConfig, checkpoint: Checkpoint | None
) -> tuple[list[OfflineRequest], dict[str, Condition]]:
    """The requests, and what tells them from others."""
    conditions: dict[str, Condition]
    if options.dataset is None:
        output_tokens = options.output_tokens or _OUTPUT_TOKENS
        requests = random_requests(
            options.seed, options.requests, options.input_tokens, output_tokens, config.vocab_size
        )
        conditions = {
            "workload": "random",
            "input_tokens": str(options.input_tokens),
            "output_tokens": str(output_tokens),
        }
    else:
        source = resolve(options.tokenizer) if options.tokenizer else checkpoint
        if source is None:
            raise ConfigurationError(
                f"`{options.model}` has no tokenizer to read --dataset with: name one, "
                "--tokenizer MODEL"
            )
        requests = conversation_requests(
            options.seed,
            options.requests,
            options.dataset,
            source.load_tokenizer().encode,
            options.output_tokens.highest if options.output_tokens else None,
        )
        conditions = {"workload": options.dataset.name}
    conditions["requests"] = len(requests)
    conditions["tokens_in"] = sum(len(request.token_ids) for request in requests)
    conditions["tokens_out"] = sum(request.new_tokens for request in requests)
    return requests, conditions


def _open(options: OfflineOptions, config: ModelConfig) -> tuple[LLM, float]:
    """The engine, and seconds from nothing to ready. No prefix is reused: runs are alike."""
    settings = dict(options.engine, prefix_cache=False)
    source: AbstractContextManager[str | None] = nullcontext(options.model)
    if options.random_weights:
        settings["random_weights_seed"] = options.seed
        source = stand_in_directory(config)
    with source as model:
        started = time.perf_counter()
        llm = LLM(model, **settings)
        return llm, time.perf_counter() - started


def _formats(
    options: OfflineOptions, checkpoint: Checkpoint | None, ready: EngineReady
) -> dict[str, str]:
    """``Row``'s ``weights`` and ``kv``."""
    short = SHORT_DTYPES[ready.dtype]
    packed = options.engine["packed_weights"]
    if packed is None:
        packed = options.engine["dtype"] == "auto"
    packed = packed and ready.backend == "native" and not options.random_weights
    kv = options.engine["kv_cache_dtype"]
    return {
        "weights": weights_format(checkpoint, short, packed=packed),
        "kv": short if kv == "auto" else kv,
    }
