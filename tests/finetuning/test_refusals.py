"""What ``headrace finetune`` refuses before anything is loaded, and what a dry run says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from tiny_model import CONFIG, sums, write_rows, write_tiny_model

from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.shapes import shape
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.start import finetune
from headrace.link.errors import ConfigurationError


def refusal(model: Path, data: Path, **changes) -> str:
    settings = FinetuneSettings(model=str(model), data=str(data), device="cpu", **changes)
    with pytest.raises(ConfigurationError) as error:
        finetune(settings, Console(quiet=True))
    return str(error.value)


def write_adapter(directory: Path, config: dict[str, object]) -> Path:
    import torch
    from safetensors.torch import save_file

    directory.mkdir()
    described = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    described |= {"base_model_name_or_path": "somebody/else"} | config
    (directory / "adapter_config.json").write_text(json.dumps(described))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    weights = {
        f"{prefix}.lora_A.weight": torch.zeros(2, 64),
        f"{prefix}.lora_B.weight": torch.zeros(64, 2),
    }
    save_file(weights, directory / "adapter_model.safetensors")
    return directory


def test_settings_that_do_not_fit_the_model_or_the_machine(tiny_model, rows_file, tmp_path):
    out = str(tmp_path / "out")
    cases = [
        ({}, "`--out` is missing"),
        ({"out": out, "target_modules": ("q_porj",)}, "target module `q_porj` matches nothing"),
        ({"out": out, "target_modules": ("lm_head",)}, "target module `lm_head` matches nothing"),
        ({"out": out, "processes": 4096}, "`--processes` must be at most"),
        ({"out": out, "processes": 2, "placement": "single"}, "is one process, not 2"),
        ({"out": out, "early_stop": 2}, "`--early-stop` needs held-out rows"),
        ({"out": out, "resume": True}, "holds no run to resume"),
        ({"out": str(rows_file.parent)}, "is not an empty directory"),
        ({"out": out, "adapter": str(tmp_path)}, "adapter_config.json is missing"),
    ]
    for changes, message in cases:
        assert message in refusal(tiny_model, rows_file, **changes)
    assert not Path(out).exists()


def test_an_adapter_for_another_base_model(tiny_model, rows_file, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", {})
    message = refusal(tiny_model, rows_file, out=str(tmp_path / "out"), adapter=str(adapter))
    assert "q_proj" in message
    assert "64" in message
    assert "32" in message


def test_no_data_and_no_weights(tiny_model, tmp_path):
    out = str(tmp_path / "out")
    assert "no such file" in refusal(tiny_model, tmp_path / "none.jsonl", out=out)
    odd = write_rows(tmp_path / "rows.csv", sums(2))
    assert "reads .jsonl" in refusal(tiny_model, odd, out=out)
    (tmp_path / "empty").mkdir()
    assert "holds no data set" in refusal(tiny_model, tmp_path / "empty", out=out)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps(config_json(CONFIG)))
    assert "no weights" in refusal(bare, write_rows(tmp_path / "rows.jsonl", sums(2)), out=out)


def test_a_model_without_a_chat_template(tmp_path):
    model = write_tiny_model(tmp_path / "plain")
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    turn = {"role": "assistant", "content": "a"}
    data = write_rows(tmp_path / "chats.jsonl", [{"messages": [turn]}])
    message = refusal(model, data, out=str(tmp_path / "out"))
    assert "no chat template; expected `prompt` and `completion`, or `text`" in message


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\n"
        "from headrace.cli.main import main\n"
        "try:\n"
        f"    main({['finetune', *arguments]!r})\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_bad_rows_are_listed_and_nothing_is_imported_for_it(tiny_model, tmp_path):
    rows = [*sums(3), {"prompt": "a"}, {"prompt": "b", "completion": 3}]
    data = write_rows(tmp_path / "data.jsonl", rows)
    result = run_cli(str(tiny_model), str(data), "--out", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stdout.splitlines() == [
        f"{data}:4: `completion` is missing; the row has `prompt`",
        f"{data}:5: `completion` must be a text, is 3",
    ]
    assert result.stderr == (
        f"headrace: {data}: 2 of 5 rows cannot be used; --skip-bad-rows trains on the others\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ((), ("MODEL and DATA",)),
        (("a", "b", "c"), ("MODEL and DATA", "3 arguments")),
        (("a", "b", "--r", "0"), ("`--r` must be a whole number from 1 to 4096", "'0'")),
        (("a", "b", "--dropout", "-1"), ("`--dropout` must be a number of at least 0", "'-1'")),
        (("a", "b", "--layout", "ragged"), ("`--layout` must be one of padded, packed, fixed",)),
        (("no/such/model/at/all", "b", "--out", "o"), ("no such file or directory",)),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments, parts):
    result = run_cli(*arguments)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("headrace: ")
    for part in parts:
        assert part in line


def test_a_dry_run_of_70b_from_its_config_alone(tmp_path):
    model = tmp_path / "llama-3-70b"
    model.mkdir()
    described = config_json(shape("llama3-70b"))
    (model / "config.json").write_text(json.dumps(described))
    data = write_rows(tmp_path / "data.jsonl", sums(3))
    result = run_cli(str(model), str(data), "--out", str(tmp_path / "out"), "--dry-run")
    assert result.returncode == 0, result.stderr
    for figure in ("16,384,000", "70,553,706,496", "70,570,090,496"):
        assert figure in result.stdout
    assert "3 rows (prompt-completion)" in result.stdout
    for device in ("8 × AMD Instinct MI300X", "1 × AMD", "1 × NVIDIA H200", "1 × NVIDIA H100"):
        assert device in result.stdout
    assert not (tmp_path / "out").exists()
    bad = run_cli(
        str(model), str(write_rows(data, [{"prompt": 1, "completion": "b"}])), "--dry-run"
    )
    assert bad.returncode == 2
    assert "`prompt` must be" in bad.stdout


def test_settings_come_from_a_file_too(tiny_model, rows_file, tmp_path):
    config = tmp_path / "finetune.toml"
    config.write_text('r = 4\ntarget_modules = ["all-linear"]\ndry_run = true\n')
    result = run_cli(str(tiny_model), str(rows_file), "--config", str(config))
    assert result.returncode == 0, result.stderr
    assert "LoRA r=4" in result.stdout


def test_every_setting_has_a_flag():
    from headrace.cli.finetuning.command import SETTINGS

    declared = {setting.target for setting in SETTINGS}
    assert declared | {"model", "data"} == set(FinetuneSettings.__struct_fields__)
    assert msgspec.structs.asdict(FinetuneSettings(data=""))["target_modules"] == (
        "q_proj",
        "v_proj",
    )


def test_a_missing_library_is_named_with_how_to_get_it(
    tiny_model, rows_file, tmp_path, monkeypatch
):
    from headrace.finetuning import requirements

    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "trl" else name)
    message = refusal(tiny_model, rows_file, out=str(tmp_path / "out"))
    assert message == "fine-tuning needs trl: pip install 'headrace[finetune]'"


def test_help_shows_every_section_and_imports_nothing_heavy():
    from headrace.cli.finetuning.declared import SECTIONS

    result = run_cli("--help")
    assert result.returncode == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 100
    for section in SECTIONS:
        assert f"{section.title}:" in result.stdout
        for setting in section.settings:
            assert setting.flag.removeprefix("--") in result.stdout
