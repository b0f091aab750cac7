"""Two processes on this machine's processors: DDP, FSDP2 and ZeRO-3, through the real command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from headrace.hardware.processor import usable_cores

pytestmark = pytest.mark.skipif(usable_cores() < 2, reason="two processes need two cores")

FLAGS = (
    *("--device", "cpu", "--processes", "2", "--base-precision", "fp32", "--learning-rate", "1e-2"),
    *("--log-every", "1", "--save-every", "3", "--max-steps", "5"),
)


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "headrace.cli", "finetune"]
    return [*program, str(model), str(data), "--out", str(out), *FLAGS, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(*arguments) -> str:
    result = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment(), timeout=240
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("placement", "evidence"),
    [("zero3", "global_step3"), ("fsdp2", "pytorch_model_fsdp.bin")],
)
def test_sharded_training_is_the_same_training_and_resumes_exactly(
    train, tiny_model, rows_file, tmp_path, placement, evidence
):
    flags = ("--placement", placement, "--dropout", "0")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert f"{placement} on each of 2 devices" in run(tiny_model, rows_file, whole, *flags)
    # What only sharded training writes: Accelerate did not fall back to DDP in silence.
    assert (whole / "checkpoints" / "checkpoint-3" / evidence).exists()
    # Two processes with two rows each are one process with four.
    train(tmp_path / "alone", dropout=0, max_steps=5, batch_size=4)
    reference = adapter(tmp_path / "alone")
    for name, tensor in adapter(whole).items():
        assert torch.allclose(tensor, reference[name], atol=2e-5), name
    # As it stood after step 3.
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-5")
    (stopped / "adapter_model.safetensors").unlink()
    run(tiny_model, rows_file, stopped, *flags, "--resume")
    resumed = adapter(stopped)
    for name, tensor in adapter(whole).items():
        assert torch.equal(tensor, resumed[name]), name


def test_shards_in_bfloat16_tell_their_loss_in_float32(tiny_model, rows_file, tmp_path):
    out = tmp_path / "out"
    more = ("--placement", "fsdp2", "--base-precision", "bf16", "--max-steps", "2")
    run(tiny_model, rows_file, out, *more)
    history = json.loads((out / "history.json").read_text())
    losses = torch.tensor([entry["loss"] for entry in history if "loss" in entry])
    # Two losses above 1 that were rounded to bfloat16 add up to a multiple of 2 ** -7.
    assert (losses * 2**7 != (losses * 2**7).round()).all(), losses


def test_sigterm_saves_on_all_processes_and_exits_with_its_own_status(
    tiny_model, rows_file, tmp_path
):
    out = tmp_path / "out"
    log = tmp_path / "log"
    arguments = ("--placement", "ddp", "--max-steps", "100000", "--save-every", "100000")
    with log.open("w") as output:
        process = subprocess.Popen(
            command(tiny_model, rows_file, out, *arguments),
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        deadline = time.monotonic() + 240
        while "step 3/" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75, log.read_text()
    finally:
        process.kill()
    assert "--resume continues" in log.read_text()
    (saved,) = (out / "checkpoints").iterdir()
    assert int(saved.name.removeprefix("checkpoint-")) >= 3
    assert (saved / "adapter_model.safetensors").is_file()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert not alive


def test_one_process_that_dies_ends_the_others_and_is_named(tiny_model, rows_file, tmp_path):
    out = tmp_path / "out"
    arguments = ("--placement", "ddp", "--max-steps", "100000", "--save-every", "2")
    process = subprocess.Popen(
        command(tiny_model, rows_file, out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    try:
        deadline = time.monotonic() + 240
        while not list(out.glob("checkpoints/checkpoint-*")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = psutil.Process(process.pid).children()
        first, second = sorted(workers, key=lambda worker: worker.environ()["RANK"])
        # Busy elsewhere: both are at their end when the launcher looks.
        process.send_signal(signal.SIGSTOP)
        second.kill()
        while first.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "process 1 was ended by SIGKILL; --resume continues from the last checkpoint" in said
