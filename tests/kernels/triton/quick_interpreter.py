"""Triton's interpreter without what it repeats: half of the time of these tests."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Patch ``triton.language`` once a launch, where Triton does so at each device function's call.

    A device function's patches stay until its launch ends; made again they are the same.
    """
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_new(function: FunctionType) -> Any:
        seen = [id(value) for value in function.__globals__.values()]
        modules = id(tl) in seen, id(tl.core) in seen
        if modules in patched:
            return interpreter._LangPatchScope()
        patched.add(modules)
        return patch(function)

    def launch_anew(self: Any, *arguments: Any, **named: Any) -> Any:
        patched.clear()
        return launch(self, *arguments, **named)

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_anew
