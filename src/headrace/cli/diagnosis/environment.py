"""Environment variables that change what headrace and the libraries below it do."""

from __future__ import annotations

import os

_PREFIXES = (
    "HEADRACE_", "CUDA_", "HIP_", "ROCR_", "NVIDIA_VISIBLE", "PYTORCH_", "TORCH_", "TRITON_",
    "OMP_", "MKL_", "HF_",
)  # fmt: skip
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def describe_environment() -> list[tuple[str, str]]:
    """Each that is set, with its value; of a secret only that it is set."""
    names = sorted(name for name in os.environ if name.startswith(_PREFIXES))
    return [(name, _shown(name)) for name in names] or [("none", "of those that matter is set")]


def _shown(name: str) -> str:
    secret = any(part in name.upper() for part in _SECRETS)
    return "(set, not shown)" if secret else os.environ[name]
