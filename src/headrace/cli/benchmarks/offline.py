"""``headrace bench offline``: many requests at once through ``LLM``, no HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from headrace.cli.benchmarks.options import TokenRange, out_option, seed_option

_ENGINE_SETTINGS = (
    "backend", "device", "dtype", "threads", "packed_weights", "kv_cache_dtype", "max_batch_size",
    "max_batch_prefill_tokens", "max_batch_total_tokens",
)  # fmt: skip


@click.command("offline", context_settings={"max_content_width": 96})
@click.argument("model", required=False)
@click.option("--random-weights", is_flag=True, help="Draw the weights from --seed.")
@click.option("--requests", type=click.IntRange(min=1), default=256, help="Given at once. [256]")
@click.option(
    "--input-tokens", type=TokenRange(), default=(100, 1024), help="Of each prompt. [100:1024]"
)
@click.option(
    "--output-tokens", type=TokenRange(), help="New tokens. [100:1024; a dataset's own, its cap]"
)
@click.option("--dataset", type=click.Path(path_type=Path), help="Conversations, ShareGPT's JSON.")
@click.option("--tokenizer", metavar="MODEL", help="Of a dataset's texts. [MODEL's own]")
@click.option("--warmups", type=click.IntRange(min=0), default=1, help="[1]")
@click.option("--runs", type=click.IntRange(min=1), default=3, help="[3]")
@click.option("--backend", default="auto", help="auto, native, triton or torch. [auto]")
@click.option("--device", default="auto", help="auto, cpu or cuda. [auto]")
@click.option("--dtype", default="auto", help="auto, bfloat16, float16 or float32. [auto]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [all cores]")
@click.option(
    "--packed-weights/--no-packed-weights", default=None, help="As serve. [packed where stored so]"
)
@click.option("--kv-cache-dtype", default="auto", help="auto or int8, as serve. [auto]")
@click.option("--max-batch-size", type=click.IntRange(min=1), help="As serve.")
@click.option("--max-batch-prefill-tokens", type=click.IntRange(min=1), help="As serve.")
@click.option("--max-batch-total-tokens", type=click.IntRange(min=1), help="As serve.")
@seed_option
@out_option
def command(
    input_tokens: tuple[int, int],
    output_tokens: tuple[int, int] | None,
    out: Path | None,
    **given: Any,
) -> int:
    """Time the generation of many requests at once on MODEL, through the public LLM.

    MODEL is as for `bench latency`. Prompts are random ids, their lengths and the outputs' uniform
    in the given ranges, all from --seed; --dataset takes conversations instead. Decoding is greedy,
    end-of-sequence ids are ignored, no prefix is reused. output_tokens_per_s is all new tokens /
    seconds from the call to its return, texts included.
    """
    from headrace.benchmark.offline.requests import Lengths
    from headrace.benchmark.offline.run import OfflineOptions, run_offline
    from headrace.cli.benchmarks.terminal import wide_console
    from headrace.engine.log_setup import configure_logging

    configure_logging(json_output=False, level="warning")
    options = OfflineOptions(
        input_tokens=Lengths(*input_tokens),
        output_tokens=Lengths(*output_tokens) if output_tokens else None,
        engine={name: given.pop(name) for name in _ENGINE_SETTINGS},
        **given,
    )
    run_offline(options, out, wide_console())
    return 0
