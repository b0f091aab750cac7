"""``headrace bench offline``: the workload, the run through ``LLM``, the record, the refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from headrace.benchmark.offline.requests import Lengths, random_requests
from headrace.benchmark.record import load_record
from headrace.cli.main import main


def bench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["bench", "offline", *arguments])
    return int(end.value.code or 0)


def test_the_default_workload_is_the_published_one() -> None:
    from headrace.cli.benchmarks.offline import command

    defaults = {parameter.name: parameter.default for parameter in command.params}
    assert (defaults["requests"], defaults["seed"]) == (256, 0)
    requests = random_requests(
        0, 256, Lengths(*defaults["input_tokens"]), Lengths(100, 1024), 128256
    )
    assert sum(len(request.token_ids) for request in requests) == 149_918
    assert sum(request.new_tokens for request in requests) == 143_223
    assert all(100 <= len(request.token_ids) <= 1024 for request in requests)
    assert all(10 <= token_id < 128256 for request in requests for token_id in request.token_ids)


def test_a_run_goes_through_the_engine_and_is_recorded(tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["smollm2-135m", "--random-weights", "--requests", "3", "--input-tokens", "3:9"]
    arguments += ["--output-tokens", "2:4", "--warmups", "1", "--runs", "2", "--threads", "1"]
    arguments += ["--max-batch-total-tokens", "512", "--max-batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["headrace", "bench", "offline", *arguments])
    assert bench(*arguments, "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert path.stem.endswith("-offline-smollm2-135m")
    record = load_record(path)
    assert record.command == " ".join(["headrace bench offline", *arguments])
    rows = {row.metric: row for row in record.rows}
    requests = random_requests(0, 3, Lengths(3, 9), Lengths(2, 4), 49152)
    new_tokens = sum(request.new_tokens for request in requests)
    rate = rows["output_tokens_per_s"]
    assert rate.samples == [new_tokens / seconds for seconds in rows["generate_all_s"].samples]
    assert len(rate.samples) == 2
    assert rate.conditions["tokens_out"] == new_tokens
    assert rate.conditions["input_tokens"] == "3:9"
    # Two of the three run at once, so that the steps are more than the longest output.
    assert rows["engine_steps"].value > max(request.new_tokens for request in requests)
    assert rows["peak_memory_gib"].value > 0.1
    assert rows["ready_s"].value > 0
    for word in ("warm-up", "run 2 of 2", "output_tokens_per_s", "p99", "3 requests"):
        assert word in shown


def test_conversations_are_encoded_by_the_model(tmp_path: Path) -> None:
    dataset = tmp_path / "talks.json"
    said = ("What is a weir? Tell me in one sentence.", "A low dam across a river, to raise it.")
    turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt"), said, strict=True)]
    dataset.write_text(json.dumps([{"conversations": turns}]))
    arguments = ["--dataset", str(dataset), "--output-tokens", "5", "--requests", "2"]
    arguments += ["--warmups", "0", "--runs", "1", "--threads", "1"]
    assert bench(*arguments, "--out", str(tmp_path / "r.json")) == 0
    conditions = load_record(tmp_path / "r.json").rows[0].conditions
    assert conditions["workload"] == "talks.json"
    row = load_record(tmp_path / "r.json").rows[0]
    assert (row.weights, row.kv) == ("q4_1", "bf16")
    assert conditions["tokens_out"] == 2 * 5
    assert 2 * 8 <= conditions["tokens_in"] <= 2 * 16


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--input-tokens", "9:3"), "'9:3' is not a range of lengths"),
        (("--input-tokens", "8000", "--output-tokens", "500"), "the model has 8192 positions"),
        (("--input-tokens", "99", "--max-batch-total-tokens", "160"), "the KV cache has 160"),
        (("no/such/model/anywhere",), "no such file or directory"),
        (("llama3-8b",), "add --random-weights"),
        (("llama3-8b", "--random-weights", "--dataset", "x.json"), "--tokenizer MODEL"),
        (("--dataset", "none.json"), "--dataset none.json: No such file"),
        (("--device", "tpu"), "--device must be one of"),
        (("--max-batch-size", "9", "--max-batch-prefill-tokens", "8"), "is below --max-batch-size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_status_2_and_no_record(tmp_path, capsys, arguments, says) -> None:
    assert bench(*arguments, "--requests", "2", "--out", str(tmp_path / "r.json")) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("headrace: ")
    assert says in error
    assert not list(tmp_path.iterdir())
