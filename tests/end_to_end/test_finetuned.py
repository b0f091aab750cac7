"""The built-in model trained on WordNet's glosses with the real command, then served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

GLOSSES = Path(__file__).parent.parent / "finetuning" / "data" / "wordnet_glosses"
HELD_OUT = 8


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glosses")
    held_out = folder / "held_out.jsonl"
    lines = (GLOSSES / "held_out.jsonl").read_text().splitlines()
    held_out.write_text("\n".join(lines[:HELD_OUT]))
    flags = "--max-steps 7 --batch-size 5 --learning-rate 3e-3 --device cpu --merge --log-every 5"
    command = [sys.executable, "-m", "headrace.cli", "finetune", str(GLOSSES / "train.jsonl")]
    result = subprocess.run(
        [*command, "--eval-data", str(held_out), "--out", str(folder / "out"), *flags.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=500,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "460,800 trainable parameters, 134,515,008 frozen" in result.stdout
    return folder / "out"


def test_the_held_out_loss_falls(trained: Path) -> None:
    history = json.loads((trained / "history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] <= 0.8 * losses[0], losses


def ask(url: str, noun: str, model: str) -> str:
    reply = httpx.post(
        f"{url}/v1/chat/completions",
        json={
            "model": model,
            "messages": [{"role": "user", "content": f"Define the noun: {noun}"}],
            "max_tokens": 40,
            "temperature": 0,
        },
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def is_gloss(answer: str) -> bool:
    """As the data has them: one short phrase, no sentence."""
    return len(answer) <= 120 and "\n" not in answer and answer[:1].islower() and answer[-1:] != "."


@pytest.fixture(scope="module")
def nouns() -> list[str]:
    """Eight that no loss was ever computed on."""
    rows = [json.loads(line) for line in (GLOSSES / "held_out.jsonl").open()]
    return [row["messages"][0]["content"].rpartition(" ")[2] for row in rows[HELD_OUT:][:8]]


def test_the_merged_checkpoint_answers_as_trained(trained, nouns, start_server) -> None:
    server = start_server("--model-id", str(trained / "merged"))
    merged = [ask(server.url, noun, "tgi") for noun in nouns]
    server.stop()
    assert sum(map(is_gloss, merged)) >= 6, merged


def test_the_base_and_the_adapter_answer_side_by_side(trained, nouns, start_server) -> None:
    server = start_server("--lora-adapters", f"glosses={trained}")
    base = [ask(server.url, noun, "tgi") for noun in nouns]
    adapted = [ask(server.url, noun, "glosses") for noun in nouns]
    server.stop()
    assert sum(map(is_gloss, base)) <= 1, base
    assert sum(map(is_gloss, adapted)) >= 6, adapted
