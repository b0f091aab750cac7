"""Write ``train.jsonl`` and ``held_out.jsonl`` from WordNet's files: ``make_glosses.py DICT``."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TRAIN, HELD_OUT = 400, 80


def entries(path: Path) -> Iterator[str]:
    # The licence stands above the entries, indented.
    with path.open() as file:
        yield from (line for line in file if not line.startswith("  "))


def glosses(dictionary: Path) -> Iterator[tuple[str, str]]:
    by_offset = {}
    for line in entries(dictionary / "data.noun"):
        head, _, gloss = line.partition(" | ")
        by_offset[head.split()[0]] = gloss.strip()
    for line in entries(dictionary / "index.noun"):
        fields = line.split()
        noun, senses, pointers = fields[0], int(fields[2]), int(fields[3])
        tagged = int(fields[3 + pointers + 2])
        gloss = by_offset[fields[-1]].split(";")[0].strip()
        is_plain = '"' not in gloss and "(" not in gloss and 25 <= len(gloss) <= 90
        if senses == 1 and tagged and is_plain and re.fullmatch("[a-z]{4,12}", noun):
            yield noun, gloss


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w") as file:
        for noun, gloss in sorted(rows):
            question = {"role": "user", "content": f"Define the noun: {noun}"}
            answer = {"role": "assistant", "content": gloss}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")


if __name__ == "__main__":
    rows = sorted(
        glosses(Path(sys.argv[1])), key=lambda row: hashlib.sha256(row[0].encode()).digest()
    )
    here = Path(__file__).parent
    write(here / "train.jsonl", rows[:TRAIN])
    write(here / "held_out.jsonl", rows[TRAIN : TRAIN + HELD_OUT])
