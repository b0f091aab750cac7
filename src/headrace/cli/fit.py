"""``headrace fit``: whether a model fits a device, for serving and for LoRA training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headrace.cli.fitting.subject import Subject
    from headrace.engine.memory_forecast import ServingForecast
    from headrace.finetuning.placement.memory_plan import MemoryPlan

_TRAINED_FORMATS = {"fp8": "fp8", "nf4": "4bit", "fp32": "fp32"}
_AUTO = "auto"


@click.command("fit")
@click.argument("model")
@click.option("--device", default=_AUTO, help="mi300x, h100, … or cpu, cuda, auto: this machine.")
@click.option("--memory", metavar="SIZE", help="Of one device, such as 96GiB, instead of its own.")
@click.option("--devices", type=click.IntRange(1), default=1, help="So many of them. [1]")
@click.option("--quantize", help="Format of the projections' weights. [bf16]")
@click.option(
    "--packed-weights/--no-packed-weights",
    default=None,
    help="Serve a GGUF file's weights as it packs them. [on a CPU, without --quantize]",
)
@click.option("--kv-cache-dtype", default=_AUTO, help="bf16, fp16, fp32, fp8 or int8. [auto]")
@click.option("--max-total-tokens", type=click.IntRange(2), help="Longest request. [the model's]")
@click.option("--max-batch-size", type=click.IntRange(1), help="Most requests at once.")
@click.option("--max-batch-prefill-tokens", type=click.IntRange(1), help="Tokens of one step.")
@click.option("--max-batch-total-tokens", type=click.IntRange(1), help="KV cache wanted.")
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["serve", "train", "both"]),
    default="both",
    help="What the exit status speaks of. [both]",
)
@click.option("--rows", type=click.IntRange(1), default=2, help="Training rows a device. [2]")
@click.option("--row-tokens", type=click.IntRange(1), default=448, help="Tokens of a row. [448]")
@click.option("--r", "rank", type=click.IntRange(1), default=8, help="Rank of adapters. [8]")
@click.option("--target-modules", default="q_proj,v_proj", help="[q_proj,v_proj], or all-linear.")
@click.option("--gradient-checkpointing", is_flag=True, help="Keep less, compute again.")
@click.option("--stock", is_flag=True, help="Train without fused pieces.")
@click.option(
    "--placement", type=click.Choice(["single", "ddp", "fsdp2", "zero3"]), help="Force one."
)
@click.option("--json", "as_json", is_flag=True, help="Plain data, bytes everywhere.")
def command(model: str, **options: Any) -> int:
    """Say whether MODEL fits, for serving and for LoRA training, and show the arithmetic.

    MODEL is a directory (its config.json is enough), a GGUF file, a built-in shape such as
    llama3-70b, or a hub id. The exit status is 0 where it fits, 1 where it does not.
    """
    from headrace.cli.fitting.place import find_place
    from headrace.cli.fitting.subject import find_subject, is_gguf

    size = options["memory"]
    place = find_place(options["device"], None if size is None else _read_size(size))
    packed = options["packed_weights"]
    if packed is None and options["quantize"] is None and not place.on_gpu:
        packed = is_gguf(model)
    options["quantize"] = options["quantize"] or "bf16"
    subject = find_subject(model, packed=bool(packed))
    wanted = ("serve", "train") if options["purpose"] == "both" else (options["purpose"],)
    forecast = plan = None
    if "serve" in wanted:
        forecast = _serving(subject, place.memory_bytes, place.on_gpu, options)
    if "train" in wanted:
        plan = _training(subject, place.memory_bytes, place.on_gpu, options)
    fits = [forecast is None or forecast.cache is not None]
    fits.append(plan is None or plan.fits(place.memory_bytes))
    if options["as_json"]:
        _write_json(subject, place.memory_bytes, forecast, plan)
    else:
        count = options["devices"]
        title = f"{count} × {place.title}, {place.memory_bytes / 2**30:.2f} GiB each"
        _write_text(subject, f"{title} ({place.source})", place.memory_bytes, forecast, plan)
    return 0 if all(fits) else 1


def _read_size(text: str) -> int:
    from headrace.cli.settings.kinds import Size

    try:
        return Size().read(text)
    except ValueError as error:
        raise click.BadParameter(f"must be {error}, got `{text}`", param_hint="--memory") from None


def _choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise click.BadParameter(
            f"must be one of {', '.join(choices)}, got `{value}`", param_hint=option
        )
    return value


def _serving(
    subject: Subject, memory: int, on_gpu: bool, options: dict[str, Any]
) -> ServingForecast:
    from headrace.checkpoint.weight_formats import WEIGHT_FORMATS
    from headrace.engine.memory_forecast import KV_DTYPES, forecast_serving
    from headrace.engine.settings import EngineSettings

    weights = _choice("--quantize", options["quantize"], tuple(WEIGHT_FORMATS))
    kv = options["kv_cache_dtype"]
    if kv == _AUTO:
        kv = weights if weights in ("fp16", "fp32") else "bf16"
    settings = EngineSettings(
        max_total_tokens=options["max_total_tokens"],
        max_batch_size=options["max_batch_size"],
        max_batch_prefill_tokens=options["max_batch_prefill_tokens"],
        max_batch_total_tokens=options["max_batch_total_tokens"],
    )
    return forecast_serving(
        subject.config,
        settings,
        device_bytes=memory,
        on_gpu=on_gpu,
        weights=weights,
        stored_weight_bytes=subject.stored_bytes,
        kv=_choice("--kv-cache-dtype", kv, tuple(KV_DTYPES)),
        shards=options["devices"],
    )


def _training(subject: Subject, memory: int, on_gpu: bool, options: dict[str, Any]) -> MemoryPlan:
    from headrace.checkpoint.weight_formats import WEIGHT_FORMATS
    from headrace.finetuning.fused.pieces import FusedPieces
    from headrace.finetuning.placement.placements import Placement
    from headrace.finetuning.placement.report import best_plan
    from headrace.finetuning.placement.workload import UNFUSED, TrainingWorkload

    weights = _choice("--quantize", options["quantize"], tuple(WEIGHT_FORMATS))
    workload = TrainingWorkload(
        rows=options["rows"],
        row_tokens=options["row_tokens"],
        rank=options["rank"],
        target_modules=tuple(options["target_modules"].split(",")),
        base_precision=_TRAINED_FORMATS.get(weights, "bf16"),
        gradient_checkpointing=options["gradient_checkpointing"],
        fused=UNFUSED if options["stock"] else FusedPieces(),
        dropout=0.1,
        on_gpu=on_gpu,
    )
    forced = None if options["placement"] is None else Placement(options["placement"])
    return best_plan(subject.config, workload, memory, options["devices"], forced)


def _write_json(
    subject: Subject, memory: int, forecast: ServingForecast | None, plan: MemoryPlan | None
) -> None:
    import msgspec

    from headrace.checkpoint.sizes import parameter_count
    from headrace.cli.fitting.tables import serving_data, training_data

    data: dict[str, Any] = {"model": subject.name, "parameters": parameter_count(subject.config)}
    if forecast is not None:
        data["serving"] = serving_data(forecast)
    if plan is not None:
        data["training"] = training_data(plan, memory)
    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=1).decode())


def _write_text(
    subject: Subject,
    title: str,
    memory: int,
    forecast: ServingForecast | None,
    plan: MemoryPlan | None,
) -> None:
    from rich.console import Console
    from rich.markup import escape

    from headrace.checkpoint.sizes import parameter_count
    from headrace.cli.fitting.tables import serving_table, serving_verdict
    from headrace.finetuning.placement.report import describe_workload, plan_table

    console = Console(highlight=False, soft_wrap=False)
    count = parameter_count(subject.config)
    console.print(f"[bold]{escape(subject.name)}[/bold], {count:,} parameters, on {title}\n")
    if forecast is not None:
        console.print("[bold]Serving[/bold]", serving_table(forecast), sep="\n")
        console.print(serving_verdict(forecast), soft_wrap=True)
    if plan is not None:
        verdict = "fits" if plan.fits(memory) else "does not fit"
        needed, there = plan.total_bytes / 2**30, memory / 2**30
        console.print("\n[bold]LoRA training[/bold]", describe_workload(plan.workload), sep="\n")
        console.print(plan_table(plan))
        console.print(f"{verdict}: {needed:.2f} GiB of {there:.2f} GiB", soft_wrap=True)
