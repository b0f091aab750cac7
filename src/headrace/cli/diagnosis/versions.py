"""Versions of what headrace stands on, without importing any of it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import headrace
from headrace.benchmark.provenance import own_commit

_OPTIONAL = (
    "transformers",
    "peft",
    "accelerate",
    "trl",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "matplotlib",
)
_PACKAGES = ("torch", "triton", "numpy", "tokenizers", "safetensors", "huggingface-hub", "uvicorn")


def describe_versions() -> list[tuple[str, str]]:
    """Pairs of a package and its version, for people."""
    return [
        ("headrace", f"{headrace.__version__}, commit {own_commit()}"),
        ("Python", f"{platform.python_version()} at {sys.executable}"),
        *((package, _version(package)) for package in _PACKAGES),
    ]


def describe_optional() -> list[tuple[str, str]]:
    """Pairs of a library that fine-tuning or benchmarks can use and its version."""
    return [(package, _version(package)) for package in _OPTIONAL]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
