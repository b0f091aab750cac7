"""``headrace bench finetune``: LoRA training, ours and stock PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.cli.benchmarks.options import out_option, seed_option


@click.command("finetune", context_settings={"max_content_width": 96})
@click.argument("model")
@click.option("--random-weights", is_flag=True, help="Draw the weights from --seed.")
@click.option("--reference", is_flag=True, help="The five reference workloads, each base once.")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=(2,),
    multiple=True,
    help="Rows of a step; give it again for another workload. [2]",
)
@click.option("--row-tokens", type=click.IntRange(min=1), default=448, help="[448]")
@click.option("--checkpointing", is_flag=True, help="Compute activations again in the backward.")
@click.option(
    "--base-precision",
    type=click.Choice(("bf16", "fp8", "4bit")),
    default="bf16",
    help="Of the frozen linears. [bf16]",
)
@click.option(
    "--small-memory", is_flag=True, help="FP8: no transposed copy of the weights is kept."
)
@click.option("--stock/--no-stock", default=True, help="Also stock PEFT (not over FP8). [stock]")
@click.option("--trainer", is_flag=True, help="Also ours in the trainer of headrace finetune.")
@click.option("--rank", type=click.IntRange(min=1), default=8, help="[8]")
@click.option("--alpha", type=click.IntRange(min=1), default=32, help="[32]")
@click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.1, help="[0.1]")
@click.option("--targets", default="q_proj,v_proj", help="[q_proj,v_proj]")
@click.option("--warmups", type=click.IntRange(min=1), default=4, help="[4]")
@click.option("--steps", type=click.IntRange(min=1), default=10, help="Timed. [10]")
@click.option(
    "--loss-steps", type=click.IntRange(min=0), default=4, help="Compared, without dropout. [4]"
)
@click.option("--device", default="auto", help="auto, cpu or cuda. [auto]")
@seed_option
@out_option
def command(
    model: str,
    random_weights: bool,
    reference: bool,
    rows: tuple[int, ...],
    row_tokens: int,
    checkpointing: bool,
    base_precision: str,
    small_memory: bool,
    stock: bool,
    trainer: bool,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str,
    warmups: int,
    steps: int,
    loss_steps: int,
    device: str,
    seed: int,
    out: Path | None,
) -> int:
    """Time LoRA training steps of MODEL in a bare loop, ours and stock PEFT over the same weights.

    MODEL is a directory of safetensors or, with --random-weights, a directory with a config.json or
    a built-in shape such as llama3-8b. AdamW (lr 3e-3, fused) with a linear schedule, fresh random
    rows of fixed length. train_step_ms is a whole step; losses are compared over the first steps
    without dropout. Each system gets a record.
    """
    from headrace.benchmark.finetuning.compare import AdapterOptions
    from headrace.benchmark.finetuning.run import BenchOptions, run_bench
    from headrace.benchmark.finetuning.workloads import REFERENCE, Workload
    from headrace.cli.benchmarks.terminal import wide_console
    from headrace.finetuning.base_precision.precision import BasePrecision

    precision = BasePrecision(base_precision)
    asked = tuple(Workload(count, row_tokens, checkpointing, precision) for count in rows)
    names = tuple(name for name in targets.split(",") if name)
    options = BenchOptions(
        model=model,
        random_weights=random_weights,
        workloads=REFERENCE if reference else asked,
        adapters=AdapterOptions(rank=rank, alpha=alpha, dropout=dropout, targets=names),
        stock=stock,
        keep_transposed=not small_memory,
        warmups=warmups,
        steps=steps,
        loss_steps=loss_steps,
        trainer=trainer,
        device=device,
        seed=seed,
    )
    run_bench(options, out, wide_console())
    return 0
