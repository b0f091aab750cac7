"""Which backend serves: by what the device can do, unless the user names one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch

from headrace.checkpoint.builtin import cache_directory
from headrace.hardware.device import resolve_device
from headrace.hardware.processor import usable_cores
from headrace.hardware.switches import is_on
from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.backend import Backend
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.backends.native_operations import reason_refused
from headrace.modeling.backends.torch_backend import TorchBackend

BACKENDS = ("auto", "native", "triton", "torch")
NATIVE_DTYPES = (torch.bfloat16, torch.float32)
KV_CACHE_DTYPES = ("auto", "int8")
_DTYPES = {
    "auto": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, ready to pack weights.

    Attributes:
        dtype_name: As torch prints it, without ``torch.``.
        reason: Why this one, for the log.
    """

    backend: Backend
    device: torch.device
    dtype_name: str
    reason: str


def choose_backend(
    name: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    *,
    head_dim: int = 64,
    block_size: int = 16,
    threads: int | None = None,
    packed_weights: bool = False,
    kv_cache_dtype: str = "auto",
) -> BackendChoice:
    """Pick the fastest backend that can run here.

    Args:
        name: One of ``BACKENDS``.
        device: ``auto``, ``cpu`` or ``cuda``.
        dtype: ``auto`` (bfloat16), ``bfloat16``, ``float16`` or ``float32``.
        head_dim: Head size of the model.
        block_size: Tokens of one cache block.
        threads: CPU threads; ``None``: from the machine.
        packed_weights: Compute with quantized weights as they are packed, where the backend can.
        kv_cache_dtype: ``auto``, as activations are, or ``int8``, which only native kernels hold.

    Raises:
        ConfigurationError: an unknown name, or a backend that cannot run here and why.
    """
    if name not in BACKENDS:
        raise ConfigurationError(f"--backend must be one of {', '.join(BACKENDS)}, got `{name}`")
    if dtype not in _DTYPES:
        raise ConfigurationError(f"--dtype must be one of {', '.join(_DTYPES)}, got `{dtype}`")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ConfigurationError(
            f"--kv-cache-dtype must be one of {', '.join(KV_CACHE_DTYPES)}, got `{kv_cache_dtype}`"
        )
    where, kind = resolve_device(device), _DTYPES[dtype]
    cache_kind = torch.int8 if kv_cache_dtype == "int8" else None
    if where.type != "cpu":
        if name == "native":
            raise ConfigurationError("--backend native computes on the CPU: add --device cpu")
        if cache_kind is not None:
            raise _no_such_cache("a GPU's attention reads keys and values of the model's dtype")
        missing = _triton_missing(kind)
        if name != "torch" and missing is None:
            # Only here: Triton is absent where torch was built for CPUs.
            from headrace.modeling.backends.triton_gpu import TritonBackend

            return _choice(TritonBackend(where, kind), kind, "Triton kernels in captured graphs")
        if name == "triton":
            raise ConfigurationError(f"--backend triton: {missing}")
        reason = "as --backend asks" if name == "torch" else f"{missing}; plain torch runs anywhere"
        return _choice(TorchBackend(where, kind), kind, reason)
    if name == "triton":
        raise ConfigurationError("--backend triton needs a GPU: none was found or --device is cpu")
    count = threads or usable_cores()
    # Beside native kernels torch only samples: its own pool would wake for nothing.
    missing = native.reason_unavailable() or reason_refused(head_dim, block_size)
    if name != "torch" and missing is None and kind in NATIVE_DTYPES:
        torch.set_num_threads(1)
        native_backend = NativeCpuBackend(
            kind,
            count,
            quantized=packed_weights,
            cache_dtype=cache_kind,
            tuning_directory=cache_directory() / "tuning" if is_on("TUNED_GEMM") else None,
        )
        # It takes its own matrices and caches only, which the decoder hands back to it unseen.
        backend = cast(Backend, native_backend)
        reason = f"{native_backend.instruction_set} kernels on {count} threads"
        return _choice(backend, kind, reason)
    if name == "native":
        reason = missing or f"it computes in bfloat16 or float32, not {dtype}"
        raise ConfigurationError(f"--backend native: {reason}")
    torch.set_num_threads(count)
    reason = "as --backend asks" if name == "torch" else missing or f"no native kernels for {dtype}"
    if cache_kind is not None:
        raise _no_such_cache(f"only the native backend has it, and torch serves ({reason})")
    return _choice(TorchBackend(where, kind), kind, f"{reason}; {count} threads")


def _no_such_cache(reason: str) -> ConfigurationError:
    return ConfigurationError(f"--kv-cache-dtype int8: {reason}")


def _triton_missing(dtype: torch.dtype) -> str | None:
    """Why the Triton backend cannot run; ``None``: it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bfloat16 or float16, not {str(dtype).removeprefix('torch.')}"
    return None


def _choice(backend: Backend, dtype: torch.dtype, reason: str) -> BackendChoice:
    device = backend.operations.device
    return BackendChoice(backend, device, str(dtype).removeprefix("torch."), reason)
