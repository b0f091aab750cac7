"""Every figure of the tables of README and docs stands in a record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_and_records_agree() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "readme_tables.py", "--check"], check=False
    )
    assert done.returncode == 0, "run python benchmarks/readme_tables.py"
