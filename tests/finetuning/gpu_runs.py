"""Runs of the real command on GPUs, as a script that prints one JSON line a check.

On one GPU: a run that is stopped and continued, with captured steps. On two: DDP, FSDP2 and ZeRO-3
against one device, and their continuation. A check is a name with ``ok`` and what was found.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import CONFIG, sums, write_rows, write_tiny_model

LARGER = msgspec.structs.replace(
    CONFIG, hidden_size=256, intermediate_size=512, num_layers=4, head_dim=64, max_position=1024
)
STEPS, SAVED = 8, 4
FLAGS = (
    *("--device", "cuda", "--learning-rate", "1e-2", "--log-every", "1"),
    *("--max-steps", str(STEPS), "--save-every", str(SAVED), "--keep-checkpoints", "9"),
)


def say(name: str, ok: bool, **found: object) -> None:
    print(json.dumps({"check": name, "ok": ok, **found}), flush=True)


class Runs:
    """Trainings of one small model, each in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_tiny_model(folder / "model", LARGER)
        self.rows = write_rows(folder / "rows.jsonl", sums(400))

    def train(self, name: str, *flags: str, gpu: int | None = None) -> Path:
        out = self.folder / name
        program = [sys.executable, "-m", "headrace.cli", "finetune"]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = str(gpu)
        done = subprocess.run(
            [*program, str(self.model), str(self.rows), "--out", str(out), *FLAGS, *flags],
            capture_output=True,
            text=True,
            env=variables,
            timeout=240,
        )
        if done.returncode:
            say(name, False, status=done.returncode, said=(done.stdout + done.stderr)[-2500:])
        return out

    def continued(self, name: str, *flags: str, gpu: int | None = None) -> Path:
        """The run called ``name``, taken up again where it stood half-way."""
        stopped = self.folder / f"{name} continued"
        if not (self.folder / name / "adapter_model.safetensors").is_file():
            return stopped
        shutil.copytree(self.folder / name, stopped)
        shutil.rmtree(stopped / "checkpoints" / f"checkpoint-{STEPS}")
        (stopped / "adapter_model.safetensors").unlink()
        return self.train(stopped.name, *flags, "--resume", gpu=gpu)


def adapter(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter_model.safetensors")


def logged(out: Path, name: str) -> list[float]:
    return [e[name] for e in json.loads((out / "history.json").read_text()) if name in e]


def check_equal(name: str, one: Path, other: Path) -> None:
    try:
        first, second = adapter(one), adapter(other)
    except OSError as error:
        return say(name, False, error=str(error))
    unequal = [key for key, tensor in first.items() if not torch.equal(tensor, second[key])]
    return say(name, not unequal, tensors=len(first), unequal=len(unequal))


def check_near(name: str, one: Path, other: Path, first: float = 5e-6) -> None:
    """The computation is the same, seen before AdamW has magnified how it was rounded.

    A gradient near zero decides by its sign over a whole step of its weight: from the third loss on
    two ways to add the same numbers are apart by 1e-4, also on one device.
    """
    try:
        mine, theirs = adapter(one), adapter(other)
        pair = logged(one, "loss"), logged(other, "loss")
        norms = logged(one, "grad_norm"), logged(other, "grad_norm")
    except OSError as error:
        return say(name, False, error=str(error))
    losses = [abs(a - b) for a, b in zip(*pair, strict=True)]
    gradients = [abs(b / a - 1) for a, b in zip(*norms, strict=True)]
    weights = max(
        float((tensor - theirs[key]).norm() / tensor.norm()) for key, tensor in mine.items()
    )
    early = max(losses[:2] + gradients[:2])
    return say(
        name,
        early <= first and max(losses) <= 1e-3 and weights <= 2e-2,
        first_two_steps=early,
        worst_loss=max(losses),
        weights=weights,
    )


def on_one(runs: Runs) -> None:
    """Captured steps (rows of one shape), with dropout: exact repetition and continuation."""
    exact = ("--deterministic",)
    ways = {
        "fixed, not deterministic": ("--layout", "fixed", "--max-length", "64"),
        "fixed": ("--layout", "fixed", "--max-length", "64", *exact),
        "padded": ("--batch-size", "4", *exact),
        "packed": ("--layout", "packed", "--max-length", "64", *exact),
    }
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: runs.train(name, *ways[name], gpu=0), ways))
        again = pool.submit(runs.train, "again", *ways["fixed"], gpu=0)
        done = list(pool.map(lambda name: runs.continued(name, *ways[name], gpu=0), ways))
    check_equal("deterministic repeats", runs.folder / "fixed", again.result())
    for name, out in zip(ways, done, strict=True):
        check_equal(f"{name}: continued equals uninterrupted", runs.folder / name, out)


def on_two(runs: Runs) -> None:
    """Two processes with two rows each are one with two times two; a continued run is the same run.

    Fused and unfused: not every placement fuses the same pieces.
    """
    plain = ("--dropout", "0", "--base-precision", "fp32")
    unfused = (*plain, "--no-fused")
    four_rows = ("--batch-size", "2", "--accumulate", "2")
    placements = ("ddp", "fsdp2", "zero3")
    exact = ("--deterministic", "--layout", "fixed", "--max-length", "64")

    def start(job: tuple[str, tuple[str, ...], int | None]) -> Path:
        return runs.train(job[0], *job[1], gpu=job[2])

    jobs: list[tuple[str, tuple[str, ...], int | None]] = [
        ("alone", (*plain, *four_rows), 0),
        ("alone unfused", (*unfused, *four_rows), 1),
    ]
    for placement in placements:
        forced = ("--placement", placement, "--processes", "2")
        jobs.append((f"{placement} fp32", (*plain, *forced), None))
        jobs.append((f"{placement} unfused", (*unfused, *forced), None))
        jobs.append((f"{placement} bf16", (*exact, *forced), None))
    with ThreadPoolExecutor() as pool:
        outs = dict(zip((job[0] for job in jobs), pool.map(start, jobs), strict=True))
        # Fused kernels multiply float32 in tf32.
        check_near("one device: fused as unfused", outs["alone unfused"], outs["alone"], 1e-3)
        for placement in placements:
            check_near(f"{placement}: as one device", outs["alone"], outs[f"{placement} fp32"])
            one, other = outs["alone unfused"], outs[f"{placement} unfused"]
            check_near(f"{placement} unfused: as one device", one, other)
        forced = [("--placement", placement, "--processes", "2") for placement in placements]
        done = pool.map(lambda flags: runs.continued(f"{flags[1]} bf16", *exact, *flags), forced)
        for placement, out in zip(placements, done, strict=True):
            whole = outs[f"{placement} bf16"]
            check_equal(f"{placement}: continued equals uninterrupted", whole, out)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        if torch.cuda.device_count() > 1:
            on_two(runs)
        else:
            on_one(runs)


if __name__ == "__main__":
    main()
