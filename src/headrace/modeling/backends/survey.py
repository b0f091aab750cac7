"""Which backends work here, as JSON lines: ``headrace doctor`` asks it in a process of its own."""

from __future__ import annotations

import msgspec
import torch

from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import choose_backend


class Finding(msgspec.Struct, frozen=True):
    """A backend, whether it works on this machine, and with what or why not."""

    name: str
    works: bool
    detail: str


def survey() -> list[Finding]:
    """Every backend, then what ``--backend auto`` takes."""
    return [_torch(), _native(), gpu_finding(), _automatic()]


def _torch() -> Finding:
    return Finding("torch", True, f"plain torch {torch.__version__}")


def _native() -> Finding:
    missing = native.reason_unavailable()
    if missing is not None:
        return Finding("native", False, missing)
    return Finding("native", True, f"{native.choose_instruction_set()} kernels on the CPU")


def gpu_finding() -> Finding:
    """The backend of GPUs, with what it has for theirs."""
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch finds no GPU" if built else "this build of torch has no GPU support"
        return Finding("triton", False, why)
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    try:
        import triton
    except ImportError as error:
        return Finding("triton", False, f"{', '.join(sorted(names))}, but {error}")
    detail = f"triton {triton.__version__} on {', '.join(sorted(names))}"
    return Finding("triton", True, detail + _hopper())


def _hopper() -> str:
    """What is said of kernels that are compiled for Hopper alone."""
    from headrace.kernels.cuda_source import compiler

    if torch.version.hip is not None or torch.cuda.get_device_capability() != (9, 0):
        return ""
    if compiler() is None:
        return ", without kernels in CUDA C++: NVRTC is not installed"
    return ", with kernels in CUDA C++"


def _automatic() -> Finding:
    try:
        choice = choose_backend()
    except ConfigurationError as error:
        return Finding("auto", False, str(error))
    return Finding("auto", True, f"takes {choice.backend.name}: {choice.reason}")


if __name__ == "__main__":
    for finding in survey():
        print(msgspec.json.encode(finding).decode())
