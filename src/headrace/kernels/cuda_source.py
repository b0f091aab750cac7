"""CUDA C++ compiled on the machine that runs it, for what Triton has no words for.

NVRTC (NVIDIA's run-time compiler, which torch's CUDA builds bring along) turns the source into a
cubin; it is kept in Triton's cache beside Triton's own kernels, so that a second start compiles
nothing. The driver loads and launches it. Names and numbers are those of ``nvrtc.h`` and ``cuda.h``
(CUDA Driver API, "Execution Control" and "Tensor Map Object Management").
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from triton.runtime.cache import get_cache_manager

_SONAMES = ("libnvrtc.so.13", "libnvrtc.so.12")
_CUBIN = "kernel.cubin"
_MAX_DYNAMIC_SHARED_MEMORY = 8
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
_TENSOR_TYPES = {torch.float16: 6, torch.bfloat16: 9}
_SWIZZLE_128_BYTES, _PROMOTE_128_BYTES = 3, 2


class CompilationError(RuntimeError):
    """NVRTC refused a source; the message is its log."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code, and what the compiler said of registers and spills."""

    cubin: bytes
    log: str


@cache
def compiler() -> ctypes.CDLL | None:
    """NVRTC: the copy that torch has opened, else one that pip installed; ``None``: there is none.

    pip's packages of CUDA libraries share the namespace ``nvidia``.
    """
    for soname in _SONAMES:
        try:
            return ctypes.CDLL(soname)
        except OSError:
            continue
    try:
        import nvidia
    except ImportError:
        return None
    for base in nvidia.__path__:
        for soname in _SONAMES:
            for found in Path(base).glob(f"*/lib/{soname}"):
                # It asks the loader for this one by name alone.
                for builtins in found.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins))
                return ctypes.CDLL(str(found))
    return None


def compile_source(source: str, architecture: str) -> Compiled:
    """Compile for one architecture, ``sm_90a`` say.

    Raises:
        CompilationError: The source is wrong, or there is no compiler.
    """
    library = compiler()
    if library is None:
        raise CompilationError("NVRTC is not installed")
    program = ctypes.c_void_p()
    status = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"source.cu", 0, None, None
    )
    if status != 0:
        raise CompilationError(f"nvrtcCreateProgram failed with status {status}")
    try:
        options = [f"--gpu-architecture={architecture}", "--std=c++17", "--ptxas-options=-v"]
        status = library.nvrtcCompileProgram(
            program,
            len(options),
            (ctypes.c_char_p * len(options))(*(option.encode() for option in options)),
        )
        log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if status != 0:
            raise CompilationError(log)
        return Compiled(_read(library, program, "CUBIN"), log)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, content)
    return content.raw


def compile_once(source: str, architecture: str) -> bytes:
    """The cubin, from the cache on disk where it was compiled before.

    Raises:
        CompilationError: As ``compile_source``.
    """
    text = repr((source, architecture, torch.version.cuda))
    kept = get_cache_manager(hashlib.sha256(text.encode()).hexdigest())
    path = kept.get_file(_CUBIN)
    if path is not None:
        return Path(path).read_bytes()
    cubin = compile_source(source, architecture).cubin
    kept.put(cubin, _CUBIN, binary=True)
    return cubin


class TensorMap:
    """How the copy engine finds boxes of a tensor, which it lays out in swizzled rows of 128 bytes.

    Args:
        address: On the device; it must outlive the map. A multiple of 16 bytes.
        dtype: bfloat16 or float16.
        sizes: Of the tensor, innermost first.
        strides: Elements between neighbours in all dimensions but the innermost, whose is 1;
            multiples of 8.
        box: Sizes of a box, innermost first: 64, the others at most 256. What lies outside of the
            tensor is read as zeros.

    Raises:
        RuntimeError: The driver refuses the tensor.
    """

    def __init__(
        self,
        address: int,
        dtype: torch.dtype,
        sizes: Sequence[int],
        strides: Sequence[int],
        box: Sequence[int],
    ) -> None:
        self._memory = (ctypes.c_char * 192)()
        self.address = (ctypes.addressof(self._memory) + 63) // 64 * 64
        rank = len(sizes)
        status = _driver().cuTensorMapEncodeTiled(
            ctypes.c_void_p(self.address),
            _TENSOR_TYPES[dtype],
            rank,
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * rank)(*sizes),
            (ctypes.c_uint64 * (rank - 1))(*(stride * dtype.itemsize for stride in strides)),
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,
            _SWIZZLE_128_BYTES,
            _PROMOTE_128_BYTES,
            0,
        )
        _check(status, "cuTensorMapEncodeTiled")


Argument = TensorMap | ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong | ctypes.c_float


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("identifier", ctypes.c_int),
        ("padding", ctypes.c_int),
        ("value", ctypes.c_uint32 * 16),
    )


class _Configuration(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint32),
    )


class Kernel:
    """A function of a cubin, loaded on a device.

    Args:
        name: As ``extern "C"``.
        shared_bytes: Dynamic shared memory of a program.
        device: Its index.

    Raises:
        RuntimeError: The driver refuses it.
    """

    def __init__(self, cubin: bytes, name: str, shared_bytes: int, device: int) -> None:
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        driver = _driver()
        with torch.cuda.device(device):
            # The driver loads into a context that is there.
            torch.cuda.synchronize()
            _check(driver.cuModuleLoadData(ctypes.byref(module), cubin), "cuModuleLoadData")
        status = driver.cuModuleGetFunction(ctypes.byref(self._function), module, name.encode())
        _check(status, "cuModuleGetFunction")
        status = driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_MEMORY, shared_bytes)
        _check(status, "cuFuncSetAttribute")
        self._shared_bytes = shared_bytes

    def launch(
        self, programs: int, threads: int, arguments: Sequence[Argument], dependent: bool
    ) -> None:
        """Queue it on torch's current stream.

        Args:
            arguments: In the kernel's order; their values are copied.
            dependent: The kernel may start before its predecessor has ended.

        Raises:
            RuntimeError: The driver refuses the launch.
        """
        addresses = [
            a.address if isinstance(a, TensorMap) else ctypes.addressof(a) for a in arguments
        ]
        attribute = _Attribute(identifier=_PROGRAMMATIC_STREAM_SERIALIZATION)
        attribute.value[0] = int(dependent)
        configuration = _Configuration(
            grid=(programs, 1, 1),
            block=(threads, 1, 1),
            shared_bytes=self._shared_bytes,
            stream=torch.cuda.current_stream().cuda_stream,
            attributes=ctypes.pointer(attribute),
            num_attributes=1,
        )
        status = _driver().cuLaunchKernelEx(
            ctypes.byref(configuration),
            self._function,
            (ctypes.c_void_p * len(addresses))(*addresses),
            None,
        )
        _check(status, "cuLaunchKernelEx")


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _check(status: int, what: str) -> None:
    if status != 0:
        raise RuntimeError(f"CUDA driver: {what} failed with status {status}")
