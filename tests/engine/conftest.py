from __future__ import annotations

import sys
from pathlib import Path

# The load is shared with a script for GPUs; importlib mode puts no test folder on the path.
sys.path.insert(0, str(Path(__file__).parent))
