"""``headrace bench serve``: open-loop load on a running server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrace.cli.benchmarks.options import Limits, Rates, TokenIds, out_option, seed_option

if TYPE_CHECKING:
    from headrace.benchmark.serving.load import Load
    from headrace.benchmark.serving.target import Target
    from headrace.benchmark.serving.workload import Workload

_LOCAL = ("localhost", "127.0.0.1", "::1")


@click.command("serve", context_settings={"max_content_width": 96})
@click.argument("url")
@click.option("--model", help="Name to ask for. [the server's first]")
@click.option("--api", default="completions", help="completions, chat or tgi. [completions]")
@click.option("--api-key", envvar="API_KEY", help="Sent as a bearer token.")
@click.option(
    "--rate", "rates", type=Rates(), default=(math.inf,), help="Requests a second; a list is a "
    "sweep; inf: as the concurrency permits. [inf]",
)  # fmt: skip
@click.option("--arrival", default="poisson", help="poisson or fixed. [poisson]")
@click.option("--max-concurrency", type=click.IntRange(min=1), help="Requests in flight at most.")
@click.option("--requests", type=click.IntRange(min=1), help="At each rate. [200]")
@click.option("--duration", type=click.FloatRange(min=0.1), help="Seconds of sending at each rate.")
@click.option("--input-tokens", type=click.IntRange(min=1), default=128, help="[128]")
@click.option("--output-tokens", type=click.IntRange(min=1), help="[128; a dataset's own]")
@click.option(
    "--spread", type=click.FloatRange(0, 1, max_open=True), default=0.0, help="Lengths vary "
    "uniformly by this share either way. [0]",
)  # fmt: skip
@click.option("--prefix-tokens", type=click.IntRange(min=0), default=0, help="Shared. [0]")
@click.option("--prefix-groups", type=click.IntRange(min=1), default=1, help="Prefixes. [1]")
@click.option(
    "--token-ids", type=TokenIds(), default=(1000, 30000), help="Of random prompts. [1000:30000]"
)
@click.option("--dataset", type=click.Path(path_type=Path), help="Conversations, ShareGPT's JSON.")
@click.option("--tokenizer", metavar="MODEL", help="Counts a dataset's tokens. [4 characters each]")
@click.option("--ignore-eos/--no-ignore-eos", default=True, help="Ask for all tokens. [yes]")
@click.option(
    "--limit", "limits", type=Limits(), default={}, help="In ms: ttft=500,tpot=50 (itl, e2e)."
)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=600.0, help="Seconds. [600]")
@click.option("--system", help="Name in the record. [what the server calls itself]")
@click.option("--system-version", help="Its version. [what /info says]")
@click.option("--device", help="That the server runs on. [this processor, for a local server]")
@seed_option
@out_option
def command(
    url: str,
    model: str | None,
    api: str,
    api_key: str | None,
    rates: tuple[float, ...],
    arrival: str,
    max_concurrency: int | None,
    requests: int | None,
    duration: float | None,
    limits: dict[str, float],
    ignore_eos: bool,
    timeout: float,
    system: str | None,
    system_version: str | None,
    device: str | None,
    seed: int,
    out: Path | None,
    **workload: Any,
) -> int:
    """Load the server at URL and record what each request saw.

    The load is open: requests are sent when they are due, however slow the answers are, unless
    --max-concurrency holds them back. Prompts are random ids (words, for chat and tgi), the same
    for the same --seed; --prefix-tokens gives them shared beginnings; --dataset takes
    conversations instead.
    """
    import uvloop

    from headrace.benchmark.provenance import command_line, own_commit, versions_of
    from headrace.benchmark.record import Record, Row, record_path
    from headrace.benchmark.serving.arrivals import due_times
    from headrace.benchmark.serving.load import LoadLimits
    from headrace.benchmark.serving.outcome import FORMULAS
    from headrace.benchmark.serving.report import error_kinds, load_rows
    from headrace.benchmark.serving.target import find_target
    from headrace.benchmark.tables import samples_table
    from headrace.cli.benchmarks.terminal import wide_console
    from headrace.hardware.processor import processor

    due_times(1.0, arrival, seed)
    target = find_target(url, api, model, api_key)
    console = wide_console()
    if device is None:
        device = processor() if target.host in _LOCAL else f"device at {target.host}"
    path = record_path(out, device, f"serve-{Path(target.model).name.lower()}")
    if requests is None and duration is None:
        requests = 200
    until = LoadLimits(
        requests=requests, seconds=duration, max_concurrency=max_concurrency, timeout=timeout
    )
    sizes = _sizes(workload)
    rows: list[Row] = []
    _probe(target, _workload(api, seed, workload), timeout, ignore_eos=ignore_eos)
    for rate in rates:
        source = _workload(api, seed, workload)
        load = _new_load(target, source, until, ignore_eos=ignore_eos)
        with console.status("") as status:
            uvloop.run(_watched(load, due_times(rate, arrival, seed), rate, status))
        conditions: dict[str, Any] = {"api": api, "workload": source.name}
        conditions |= {"rate": "inf"} if math.isinf(rate) else {"rate": rate, "arrival": arrival}
        if source.name == "prefix":
            conditions["prefix_tokens"] = workload["prefix_tokens"]
        if all(outcome.error for outcome in load.outcomes):
            kinds = ", ".join(f"{n} × {kind}" for kind, n in error_kinds(load.outcomes).items())
            said = next((o.message for o in load.outcomes if o.message), "")
            raise click.ClickException(f"no request succeeded at rate {rate:g}: {kinds} {said}")
        made = load_rows(load, conditions, limits, batch=max_concurrency, **sizes)
        rows += made
        console.print(f"rate {rate:g}, {arrival if math.isfinite(rate) else 'no pauses'}")
        console.print(samples_table(_without_conditions(made)))
    console.print(FORMULAS)
    Record(
        device=device,
        versions=versions_of("uvloop", "httptools", "msgspec"),
        commit=own_commit(),
        command=command_line(),
        seed=seed,
        system=system or target.system,
        system_version=system_version or target.system_version,
        model=target.model,
        rows=rows,
    ).write(path)
    console.print(f"record: {path}")
    return 0


def _workload(api: str, seed: int, given: dict[str, Any]) -> Workload:
    from headrace.benchmark.serving.workload import ConversationWorkload, RandomWorkload

    if given["dataset"] is None:
        return RandomWorkload(
            seed,
            given["input_tokens"],
            given["output_tokens"] or 128,
            spread=given["spread"],
            prefix_tokens=given["prefix_tokens"],
            prefix_groups=given["prefix_groups"],
            token_ids=given["token_ids"] if api == "completions" else None,
        )
    count = None
    if given["tokenizer"] is not None:
        from headrace.checkpoint.resolve import resolve

        tokenizer = resolve(given["tokenizer"]).load_tokenizer()

        def count(text: str) -> int:
            return len(tokenizer.encode(text))

    return ConversationWorkload(seed, given["dataset"], count, given["output_tokens"])


def _sizes(given: dict[str, Any]) -> dict[str, int | None]:
    """Prompt and output length where all requests have the same."""
    if given["dataset"] is not None or given["spread"]:
        return {"context": None, "new_tokens": None}
    return {"context": given["input_tokens"], "new_tokens": given["output_tokens"] or 128}


def _new_load(target: Target, source: Workload, until: Any, *, ignore_eos: bool) -> Load:
    from headrace.benchmark.serving.load import Load

    return Load(target, source, until, ignore_eos=ignore_eos)


def _probe(target: Target, source: Workload, timeout: float, *, ignore_eos: bool) -> None:
    """One request before the load: what can never succeed is said in one line.

    Raises:
        ConfigurationError: longer than the server permits, or refused by it.
    """
    import uvloop

    from headrace.benchmark.serving.arrivals import due_times
    from headrace.benchmark.serving.load import LoadLimits
    from headrace.link.errors import ConfigurationError

    if target.max_tokens is not None and source.longest > target.max_tokens:
        raise ConfigurationError(
            f"prompt and output of {source.longest} tokens exceed the {target.max_tokens} of "
            f"`{target.model}`"
        )
    until = LoadLimits(requests=1, seconds=None, max_concurrency=None, timeout=timeout)
    load = _new_load(target, source, until, ignore_eos=ignore_eos)
    uvloop.run(load.run(due_times(math.inf, "fixed", 0)))
    (outcome,) = load.outcomes
    if outcome.error:
        said = f": {outcome.message}" if outcome.message else ""
        raise ConfigurationError(f"the server fails the first request: {outcome.error}{said}")


async def _watched(load: Load, due: Any, rate: float, status: Any) -> None:
    """Run the load and say in the terminal how it stands."""
    import asyncio

    async def watch() -> None:
        while True:
            failed = sum(bool(outcome.error) for outcome in load.outcomes)
            status.update(
                f"rate {rate:g}: {len(load.outcomes)} ended, {load.in_flight} in flight, "
                f"{failed} failed, {load.events} events"
            )
            await asyncio.sleep(0.5)

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        await load.run(due)
    finally:
        watcher.cancel()


def _without_conditions(rows: list[Any]) -> list[Any]:
    """Rows for the terminal: what the whole load has in common is said once, above."""
    import msgspec

    return [
        msgspec.structs.replace(
            row,
            metric=f"{row.metric} ({row.conditions['kind']})"
            if row.metric == "errors"
            else row.metric,
            conditions={},
        )
        for row in rows
    ]
