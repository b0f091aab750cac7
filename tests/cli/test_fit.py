"""``headrace fit``: verdicts, exit statuses, arithmetic that adds up, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.shapes import shape
from headrace.cli.main import main

GIB = 2**30


def fit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["fit", *arguments])
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


def fit_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    status, out, _ = fit(capsys, *arguments, "--json")
    return status, json.loads(out)


def test_8b_fits_one_h100_and_the_parts_add_up(capsys):
    status, data = fit_json(capsys, "llama3-8b", "--device", "h100")
    serving = data["serving"]
    assert status == 0
    assert serving["fits"]
    assert serving["parts"]["weights"] == 2 * 8_030_261_248
    assert serving["kv_bytes_per_token"] == 131_072
    used = sum(serving["parts"].values()) + serving["kv_tokens"] * 131_072
    assert serving["total_bytes"] == used <= serving["device_bytes"]
    # The cache takes all that is left, to less than a block.
    assert serving["device_bytes"] - used < 16 * 131_072


def test_what_is_missing_before_any_cache_is_said_in_one_line(capsys):
    status, out, _ = fit(capsys, "llama3-405b", "--device", "h100", "--for", "serve")
    assert status == 1
    verdict = out.strip().splitlines()[-1]
    assert verdict.startswith("does not fit: 7")
    assert "are needed before any KV cache, a device has 79.65 GiB" in verdict


def test_70b_does_not_fit_one_h100_in_bf16_but_in_4_bit(capsys):
    status, data = fit_json(capsys, "llama3-70b", "--device", "h100")
    assert (status, data["serving"]["fits"], data["training"]["fits"]) == (1, False, False)
    status, data = fit_json(capsys, "llama3-70b", "--device", "h100", "--quantize", "nf4")
    assert (status, data["serving"]["fits"], data["training"]["fits"]) == (0, True, True)


def test_devices_and_a_smaller_cache_dtype_leave_more_tokens(capsys):
    _, one = fit_json(capsys, "llama3-8b", "--device", "h100", "--for", "serve")
    smaller = ("llama3-8b", "--device", "h100", "--for", "serve", "--kv-cache-dtype", "fp8")
    _, fp8 = fit_json(capsys, *smaller)
    assert fp8["serving"]["kv_tokens"] == pytest.approx(2 * one["serving"]["kv_tokens"], rel=1e-3)
    _, two = fit_json(capsys, "llama3-70b", "--device", "h100", "--devices", "2", "--for", "serve")
    assert two["serving"]["fits"]
    assert two["serving"]["devices"] == 2


def test_a_directory_with_nothing_but_its_configuration(capsys, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config_json(shape("qwen3-8b"))))
    _, directory = fit_json(capsys, str(tmp_path), "--device", "mi300x")
    _, named = fit_json(capsys, "qwen3-8b", "--device", "mi300x")
    assert directory["serving"] == named["serving"]
    assert directory["training"] == named["training"]


def test_only_what_was_asked_decides_the_exit_status(capsys):
    arguments = ("llama3-8b", "--memory", "20GiB", "--device", "l4", "--row-tokens", "8192")
    assert fit_json(capsys, *arguments, "--for", "train")[0] == 1
    assert fit_json(capsys, *arguments, "--for", "serve")[0] == 0


def test_the_text_shows_the_arithmetic_and_the_verdicts(capsys):
    status, out, _ = fit(capsys, "llama3-8b", "--device", "mi300x")
    assert status == 0
    for words in ("8,030,261,248 parameters", "191.98 GiB", "frozen weights", "KV cache", "fits:"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("llama4",), "no such file, directory or built-in shape; shapes are llama3-8b"),
        (("llama3-8b", "--device", "tpu"), "`tpu` is not known; there are mi300x"),
        (("llama3-8b", "--device", "h100", "--quantize", "int3"), "must be one of bf16"),
        (("llama3-8b", "--device", "h100", "--kv-cache-dtype", "int2"), "must be one of bf16"),
        (("llama3-8b", "--device", "h100", "--devices", "3"), "cannot be split over 3 devices"),
        (("llama3-8b", "--device", "h100", "--target-modules", "query"), "`query` matches nothing"),
        (("llama3-8b", "--device", "h100", "--memory", "lots"), "got `lots`"),
        (("llama3-8b", "--device", "h100", "--max-total-tokens", "9000"), "8192 positions"),
        (("llama3-8b", "--device", "h100", "--packed-weights"), "needs a file"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments: tuple[str, ...], words: str):
    status, _, err = fit(capsys, *arguments)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
