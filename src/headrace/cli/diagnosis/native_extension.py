"""The native extension: built or not, and which instruction sets it has kernels for here.

Loaded in a process of its own (this module run by itself): a broken build may end it.
"""

from __future__ import annotations

import msgspec

from headrace.cli.diagnosis.probe import ProbeFailed, json_lines

_SECONDS = 60
_MODULE = "headrace.cli.diagnosis.native_extension"


def describe_native_extension() -> list[tuple[str, str]]:
    """Pairs of a name and what is known, for people."""
    try:
        (line,) = json_lines(_MODULE, _SECONDS)
    except (ProbeFailed, ValueError) as error:
        return [("native extension", f"not usable: {error}")]
    return list(msgspec.json.decode(line, type=dict[str, str]).items())


def _look() -> dict[str, str]:
    from headrace.kernels import native

    try:
        module = native.extension()
        found = ", ".join(native.instruction_sets()) or "none that this CPU can run"
    except native.NativeKernelsUnavailable as error:
        return {"native extension": f"not usable: {error}"}
    chosen = native.reason_unavailable() or f"{native.choose_instruction_set()} is used"
    path = str(getattr(module, "__file__", "built in"))
    return {"native extension": path, "instruction sets": f"{found}; {chosen}"}


if __name__ == "__main__":
    print(msgspec.json.encode(_look()).decode())
