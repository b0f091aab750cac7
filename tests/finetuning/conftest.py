from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Shared by test files; importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import sums, write_rows, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "sums.jsonl", sums(40))
