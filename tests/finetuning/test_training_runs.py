"""Runs of a tiny model in this process: exact repetition, interruption, faults, what is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
from pathlib import Path

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny_model import sums, write_rows
from transformers import AutoModelForCausalLM, TrainerCallback

from headrace.checkpoint.resolve import resolve
from headrace.finetuning.exit_status import ExitStatus
from headrace.finetuning.run_directory import RunDirectory
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training import run as training_run
from headrace.finetuning.training.collate import Collator
from headrace.finetuning.training.failures import TrainingStopped


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def checkpoints(out: Path) -> list[str]:
    return sorted(child.name for child in (out / "checkpoints").iterdir())


def assert_same(one: Path, other: Path) -> None:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@contextlib.contextmanager
def at_step(step: int, action):
    """Do something when a step has ended, before it is decided whether to save."""
    plain = training_run.Interruption.on_step_end

    def on_step_end(self, args, state, control, **others):
        if state.global_step == step:
            action()
        plain(self, args, state, control, **others)

    training_run.Interruption.on_step_end = on_step_end
    try:
        yield
    finally:
        training_run.Interruption.on_step_end = plain


def test_a_run_leaves_an_adapter_its_history_and_a_full_checkpoint(
    train, tiny_model, tmp_path, capsys
):
    out = tmp_path / "out"
    status = train(out, eval_fraction=0.2, epochs=2, merge=True, target_modules=("all-linear",))
    assert status is ExitStatus.DONE
    assert checkpoints(out) == ["checkpoint-16", "checkpoint-32"]
    history = json.loads((out / "history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0]
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "logs").glob("events.out.tfevents.*"))
    shown = capsys.readouterr().err
    assert "step 1/32" in shown
    for part in ("loss ", "tokens/s", "GiB", "left", "held-out loss"):
        assert part in shown
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, out).eval()
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = adapted(ids).logits
        assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(ids).logits, expected, atol=1e-2)
    # Our own reader takes the merged directory, tokenizer and template included.
    assert resolve(str(out / "merged")).load_chat_template().exists
    assert resolve(str(out / "merged")).load_tokenizer().encode("2+2=")


def test_a_run_repeats_bit_for_bit_and_goes_on_exactly_after_a_signal(train, tmp_path, capsys):
    changes = {"epochs": 1, "accumulate": 2, "save_every": 4, "deterministic": True}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    try:
        assert train(whole, **changes) is ExitStatus.DONE
        with at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            assert train(stopped, **changes) is ExitStatus.INTERRUPTED
        assert "step 3, which is saved" in capsys.readouterr().out
        assert checkpoints(stopped) == ["checkpoint-3"]
        assert not (stopped / "adapter_model.safetensors").exists()
        assert train(stopped, resume=True, **changes) is ExitStatus.DONE
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(whole, stopped)
    logs = [json.loads((out / "history.json").read_text()) for out in (whole, stopped)]
    curves = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert curves[0] == curves[1]


def test_a_resume_must_be_the_same_run(train, tmp_path):
    out = tmp_path / "out"
    train(out, max_steps=2)
    from headrace.link.errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="already holds a run"):
        train(out, max_steps=2)
    with pytest.raises(ConfigurationError, match=r"has `--r` 8, not 4"):
        train(out, max_steps=2, resume=True, r=4)
    other = write_rows(tmp_path / "other.jsonl", sums(7))
    with pytest.raises(ConfigurationError, match="rows differ"):
        train(out, data=other, max_steps=2, resume=True)
    job = RunDirectory(out).read_job()
    with pytest.raises(ConfigurationError, match=r"was trained on .*, not on /another"):
        RunDirectory(out).accept(msgspec.structs.replace(job, model="/another"), [])


def test_a_loss_of_nan_stops_the_run_and_keeps_the_last_good_checkpoint(train, tmp_path):
    out = tmp_path / "out"

    def poison():
        for trainer_model in models:
            for parameter in trainer_model.parameters():
                if parameter.requires_grad:
                    parameter.data.fill_(float("nan"))

    models = []
    original = training_run.build_model

    def build(*arguments):
        model, unfused = original(*arguments)
        models.append(model)
        return model, unfused

    training_run.build_model = build
    try:
        with (
            at_step(6, poison),
            pytest.raises(
                TrainingStopped, match=r"not a finite number at step \d.*step 4, is kept"
            ),
        ):
            train(out, save_every=2)
    finally:
        training_run.build_model = original
    assert checkpoints(out) == ["checkpoint-2", "checkpoint-4"]
    kept = load_file(out / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_full_disk_stops_the_run_and_keeps_the_last_good_checkpoint(train, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plain = torch.save

    def save(thing, path, *others, **named):
        if "checkpoint-4" in str(path):
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(thing, path, *others, **named)

    monkeypatch.setattr(torch, "save", save)
    message = r"at step 4: no space is left on the disk; .*step 2, is kept"
    with pytest.raises(TrainingStopped, match=message):
        train(out, save_every=2)
    assert checkpoints(out) == ["checkpoint-2"]
    monkeypatch.undo()
    assert train(out, save_every=2, resume=True) is ExitStatus.DONE


def test_early_stop_keeps_the_best_adapter(train, tmp_path):
    out = tmp_path / "out"
    train(
        out,
        eval_fraction=0.2,
        epochs=20,
        eval_every=4,
        early_stop=2,
        learning_rate=0.3,
        schedule="constant",
        max_grad_norm=0,
    )
    history = json.loads((out / "history.json").read_text())
    losses = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert max(losses) == best + 8 < 320
    kept = load_file(out / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in adapter(out).items())


@pytest.mark.parametrize("fused", [True, False])
def test_packed_rows_do_not_see_each_other(tiny_model, fused):
    from headrace.finetuning.training.model import build_model

    settings = FinetuneSettings(
        data="", base_precision="fp32", placement="single", dropout=0, fused=fused
    )
    torch.manual_seed(0)
    model, unfused = build_model(settings, resolve(str(tiny_model)), "tiny", torch.device("cpu"))
    assert not unfused
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    rows = [list(range(1, 8)), list(range(20, 31)), list(range(50, 54))]
    alone = [{"input_ids": row, "labels": [-100, *row[1:]], "lengths": [len(row)]} for row in rows]
    packed = {key: alone[0][key] + alone[1][key] for key in ("input_ids", "labels", "lengths")}

    def gradients(batches, collator):
        model.zero_grad()
        for rows in batches:
            batch = collator(rows)
            del batch["num_tokens"]
            model(**batch, num_items_in_batch=19, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    expected = gradients([[row] for row in alone], Collator(0, packed=False))
    for found in (
        gradients([[packed, alone[2]]], Collator(0, packed=True)),
        gradients([alone], Collator(0, packed=False)),
    ):
        for one, other in zip(expected, found, strict=True):
            assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def test_padded_rows_are_as_wide_as_a_multiple():
    rows = [{"input_ids": [7] * n, "labels": [7] * n, "lengths": [n]} for n in (3, 8)]
    for multiple, width in ((1, 8), (8, 8), (5, 10)):
        batch = Collator(0, packed=False, multiple=multiple)(rows)
        assert batch["input_ids"].shape == batch["labels"].shape == (2, width)
        assert batch["attention_mask"].sum(1).tolist() == [3, 8]
        assert batch["labels"][0].tolist() == [7] * 3 + [-100] * (width - 3)
        assert batch["num_tokens"] == 11


def test_going_on_from_an_adapter_starts_where_it_ended(train, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train(first, max_steps=2, dropout=0)
    train(second, max_steps=1, dropout=0, adapter=str(first), learning_rate=1e-12)
    for name, tensor in adapter(first).items():
        assert torch.allclose(tensor, adapter(second)[name], atol=1e-9)


def test_the_trainer_reads_nothing_from_the_device_between_two_logs(train, tmp_path, monkeypatch):
    """Every ``item`` of a tensor would wait for the device."""
    calls = []
    plain = torch.Tensor.item
    counting = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step in (5, 6, 7):
                counting.append(1)

        def on_step_end(self, args, state, control, **_):
            counting.clear()

    def item(self):
        if counting:
            calls.append(self.shape)
        return plain(self)

    monkeypatch.setattr(torch.Tensor, "item", item)
    original = training_run.AdapterTrainer.__init__

    def initialise(self, **arguments):
        original(self, **arguments)
        self.add_callback(Watch())

    monkeypatch.setattr(training_run.AdapterTrainer, "__init__", initialise)
    train(tmp_path / "out", max_steps=9, log_every=9)
    assert not calls


def test_a_disk_that_is_too_small_for_the_merge_keeps_the_adapter(train, tmp_path, monkeypatch):
    from headrace.finetuning.training import merge

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(merge, "save_file", full)
    out = tmp_path / "out"
    message = "at step 2: no space is left on the disk; .*step 2, is kept"
    with pytest.raises(TrainingStopped, match=message):
        train(out, max_steps=2, merge=True)
    assert adapter(out)
    assert not list(out.glob("*merged*"))
    monkeypatch.undo()
    assert train(out, max_steps=2, merge=True, resume=True) is ExitStatus.DONE
    assert (out / "merged" / "model.safetensors").is_file()


def test_before_it_is_sharded_a_base_takes_no_memory_and_its_adapters_are_drawn(tiny_model):
    from headrace.finetuning.training.model import build_model

    def build(placement: str):
        settings = FinetuneSettings(data="", base_precision="fp32", placement=placement)
        torch.manual_seed(0)
        return build_model(settings, resolve(str(tiny_model)), "tiny", torch.device("cpu"))[0]

    whole, empty = build("single"), build("fsdp2")
    drawn = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    for name, parameter in empty.named_parameters():
        assert parameter.is_meta != (name in drawn)
        if name in drawn:
            assert torch.equal(parameter, drawn[name])
    assert all(not buffer.is_meta for buffer in empty.buffers())


def test_a_merged_checkpoint_is_written_in_shards(train, tiny_model, tmp_path, monkeypatch):
    from headrace.finetuning.training import merge

    monkeypatch.setattr(merge, "_SHARD", 40_000)
    out = tmp_path / "out"
    train(out, max_steps=2, merge=True, target_modules=("all-linear",))
    files = list((out / "merged").glob("*.safetensors"))
    assert len(files) > 1
    assert all(file.stat().st_size < 45_000 for file in files)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = PeftModel.from_pretrained(base, out).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(out / "merged").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    assert len(resolve(str(out / "merged")).tensors) == len(expected)
