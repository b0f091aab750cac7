"""``headrace bench latency``: the engine alone, no HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from headrace.cli.benchmarks.options import Integers, out_option, seed_option

_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@click.command("latency", context_settings={"max_content_width": 96})
@click.argument("model", required=False)
@click.option("--random-weights", is_flag=True, help="Draw the weights from --seed.")
@click.option(
    "--sequence-length", "contexts", type=Integers(), default=(2048,), help="Prompt tokens. [2048]"
)
@click.option(
    "--decode-length",
    "decode_lengths",
    type=Integers(),
    default=(128,),
    help="New tokens of a whole decode. [128]",
)
@click.option("--batches", type=Integers(), default=_BATCHES, help="[1,2,4,8,16,32,64]")
@click.option("--decode", default="", metavar="CASES", help="Time these decode steps only: 1x128,…")
@click.option("--prefill", default="", metavar="CASES", help="Time these prefills only: 8x1024,…")
@click.option("--warmups", type=click.IntRange(min=0), default=2, help="[2]")
@click.option(
    "--settle", type=click.FloatRange(min=0), default=1.0, help="Seconds of warm-up at least. [1]"
)
@click.option("--runs", type=click.IntRange(min=1), default=10, help="[10]")
@click.option("--prefill-runs", type=click.IntRange(min=1), help="[as --runs]")
@click.option("--backend", default="auto", help="auto, native, triton or torch. [auto]")
@click.option("--device", default="auto", help="auto, cpu or cuda. [auto]")
@click.option("--dtype", default="auto", help="auto, bfloat16, float16 or float32. [auto]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. [all cores]")
@click.option(
    "--packed-weights/--no-packed-weights", default=None, help="As serve. [packed where stored so]"
)
@click.option("--tuning", default="auto", help="auto, or library: the vendor's GEMMs. [auto]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of one step.")
@click.option("--profile", default="", metavar="CASES", help="A decode step's operations too.")
@seed_option
@out_option
def command(
    contexts: tuple[int, ...],
    decode_lengths: tuple[int, ...],
    batches: tuple[int, ...],
    decode: str,
    prefill: str,
    warmups: int,
    settle: float,
    runs: int,
    prefill_runs: int | None,
    profile: str,
    out: Path | None,
    **engine_options: object,
) -> int:
    """Time the engine alone on MODEL: prefill, a decode step, whole decodes.

    MODEL is a directory, a GGUF file, a hub id or, with --random-weights, a built-in shape such as
    llama3-8b; without one the built-in model. decode_step_ms is (time for 136 new tokens - time
    for 8) / 128; prefill_ms the time of one new token; decode_total_ms the time from the first new
    token to --decode-length more. Prompts are fresh random ids every time, decoding is greedy.
    """
    from headrace.benchmark.latency.call_profile import profile_calls
    from headrace.benchmark.latency.cases import grid, named_cases, pairs_of, profiled_cases
    from headrace.benchmark.latency.engine import EngineOptions, prepare_engine
    from headrace.benchmark.latency.kernel_profile import profile_cases
    from headrace.benchmark.latency.sweep import Repeats, measure_cases
    from headrace.benchmark.record import own_record, record_path
    from headrace.benchmark.tables import latency_tables, operations_table
    from headrace.cli.benchmarks.terminal import live_progress, wide_console
    from headrace.hardware.processor import usable_cores
    from headrace.link.errors import ConfigurationError

    console = wide_console()
    profiled = pairs_of("--profile", profile)
    cases = named_cases(decode, prefill) or grid(batches, contexts, decode_lengths)
    cases = [*cases, *profiled_cases(profiled)]
    options = EngineOptions(**engine_options)  # type: ignore[arg-type]
    repeats = Repeats(warmups, settle, prefill_runs or runs, runs)
    with console.status(f"loading {options.model or 'the built-in model'}"):
        engine = prepare_engine(options, cases)
    if profiled and not (engine.measured.on_gpu or engine.generator.timed_programs):
        raise ConfigurationError(
            f"--profile needs a GPU or --backend native: {engine.backend} runs on the CPU here"
        )
    name = Path(options.model).name.lower() if options.model else "builtin"
    device = engine.measured
    path = record_path(out, device.name, f"latency-{name}")
    console.print(
        f"{device.name}, backend {engine.backend}, weights {engine.weights}: loaded in "
        f"{engine.load_seconds:.1f} s, buffers and graphs in {engine.warm_seconds:.1f} s"
    )
    with live_progress(console, sum(map(repeats.of, cases))) as advance:
        rows = list(measure_cases(engine, cases, repeats, advance))
    for table in latency_tables(rows):
        console.print(table)
    if profiled:
        if engine.measured.on_gpu:
            operations = profile_cases(engine, profiled)
        else:
            operations = profile_calls(engine, profiled, options.threads or usable_cores())
        console.print(operations_table(operations))
        rows += operations
    own_record(
        device.name,
        rows,
        device.versions(),
        driver=device.driver,
        seed=options.seed,
        model=options.model or "builtin",
    ).write(path)
    console.print(f"record: {path}")
    return 0
