"""The native CPU kernels: one extension module, built where a compiler is, absent elsewhere."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

INSTRUCTION_SET_VARIABLE = "HEADRACE_INSTRUCTION_SET"
"""Environment variable that forces ``avx2``, ``avx512`` or ``avx512_bf16``."""


class NativeKernelsUnavailable(RuntimeError):
    """The extension is not built, or this machine cannot run it; the message says which."""


def extension() -> ModuleType:
    """The extension module.

    Raises:
        NativeKernelsUnavailable: It was not built, or was built for another Python.
    """
    try:
        return importlib.import_module("headrace.kernels._native")
    except ImportError as error:
        raise NativeKernelsUnavailable(
            f"the native CPU kernels were not built for this Python ({error})"
        ) from error


def instruction_sets() -> list[str]:
    """Instruction sets that have kernels and run on this machine, the fastest first.

    Raises:
        NativeKernelsUnavailable: See ``extension``.
    """
    return list(extension().supported_kernels())


def choose_instruction_set(wanted: str | None = None) -> str:
    """The instruction set to use: ``wanted``, the environment's, or the fastest.

    Raises:
        NativeKernelsUnavailable: No kernels, a machine below AVX2, or one that lacks ``wanted``.
    """
    supported = instruction_sets()
    if not supported:
        raise NativeKernelsUnavailable("this CPU lacks AVX2, FMA or F16C")
    wanted = wanted or os.environ.get(INSTRUCTION_SET_VARIABLE)
    if wanted is None:
        return supported[0]
    if wanted not in supported:
        raise NativeKernelsUnavailable(
            f"instruction set {wanted!r} was asked for; this CPU runs {', '.join(supported)}"
        )
    return wanted


def available() -> bool:
    """Whether native kernels can be used here."""
    return reason_unavailable() is None


def reason_unavailable() -> str | None:
    """Why native kernels cannot be used here; ``None`` where they can."""
    try:
        choose_instruction_set()
    except NativeKernelsUnavailable as error:
        return str(error)
    return None
