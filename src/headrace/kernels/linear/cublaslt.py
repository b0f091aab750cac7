"""cuBLASLt's own candidates for a product, by its C interface: what torch takes the first of.

torch calls the library with the algorithm that its heuristic ranks first; the others are as exact,
and some are faster for a given shape on a given card. The library is the one that torch has loaded.
Names, numbers and layouts are those of ``cublasLt.h`` (NVIDIA cuBLAS documentation, "Using the
cuBLASLt API").
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

import torch

WORKSPACE_BYTES = 32 << 20
"""Scratch memory that an algorithm may ask for; as much as torch gives the library on Hopper."""

_ALIGNMENT = 256
_MOST_PLANS = 4096
_TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
_COMPUTE_32F, _TYPE_32F = 68, 0
_TRANSPOSE_A, _TRANSPOSED = 3, 1
_PREFERENCE_MAX_WORKSPACE, _PREFERENCE_REDUCTIONS = 1, 3
_SWIZZLING, _CLUSTER_SHAPE = 4, 8
_SWIZZLINGS, _CLUSTERS = (0, 1), range(2, 13)
"""Orders in which tiles are walked, and shapes of clusters of programs that share what they read:
1 x 1 to 8 x 1 and their like."""

_EXACT_REDUCTIONS = 1 | 2
"""In place or in float32; never shares of a sum rounded to the output's type."""


class _Algorithm(ctypes.Structure):
    """Opaque; valid for one version of the library."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Heuristic(ctypes.Structure):
    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True, slots=True)
class _Product:
    """What the library is told of ``out[T, N] = x[T, K] @ weight[N, K].T``; strides in elements."""

    tokens: int
    num_rows: int
    columns: int
    x_stride: int
    weight_stride: int
    out_stride: int
    dtype: torch.dtype
    out_dtype: torch.dtype

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> _Product:
        return cls(
            x.shape[0],
            weight.shape[0],
            weight.shape[1],
            x.stride(0),
            weight.stride(0),
            out.stride(0),
            x.dtype,
            out.dtype,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Descriptors of one product; they live as long as the process."""

    operation: ctypes.c_void_p
    weight: ctypes.c_void_p
    x: ctypes.c_void_p
    out: ctypes.c_void_p


class CublasLt:
    """The library, for one device.

    Args:
        device: A CUDA device; the workspace is allocated there.
        library: The loaded library.
    """

    def __init__(self, device: torch.device, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmulAlgoCheck", "cublasLtMatmul"):
            getattr(library, name).restype = ctypes.c_int
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            _check(library.cublasLtCreate(ctypes.byref(self._handle)), "cublasLtCreate")
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._plans: dict[_Product, _Plan] = {}
        self._algorithms: dict[str, _Algorithm] = {}
        self._usable: dict[tuple[_Product, str], bool] = {}
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)

    @property
    def version(self) -> int:
        """Of the library; an algorithm is valid for one only."""
        return int(self._library.cublasLtGetVersion())

    def algorithms(
        self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, most: int
    ) -> list[str]:
        """At most ``most`` algorithms for this product, best first as the library guesses.

        It is asked twice, with all of the workspace and with none, since it names only a few at a
        time.

        Returns:
            Each as 128 hexadecimal digits; none where the library knows no way.
        """
        plan = self._plan(_Product.of(x, weight, out))
        found = [*self._guesses(plan, most, WORKSPACE_BYTES), *self._guesses(plan, most, 0)]
        return list(dict.fromkeys(found))[:most]

    def variants(
        self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, algorithm: str
    ) -> list[str]:
        """``algorithm`` with other clusters and walks over the tiles, where the library takes them.

        The heuristic names one of each tile; for a weight that is read once another cluster is up
        to 4 % faster.
        """
        plan = self._plan(_Product.of(x, weight, out))
        found = [
            *(self._changed(algorithm, _SWIZZLING, ctypes.c_uint32(n)) for n in _SWIZZLINGS),
            *(self._changed(algorithm, _CLUSTER_SHAPE, ctypes.c_uint16(n)) for n in _CLUSTERS),
        ]
        return [
            other
            for other in dict.fromkeys(found)
            if other != algorithm and self._takes(plan, self._algorithm(other))
        ]

    def _changed(
        self, algorithm: str, attribute: int, value: ctypes.c_uint16 | ctypes.c_uint32
    ) -> str:
        changed = _Algorithm.from_buffer_copy(bytes.fromhex(algorithm))
        status = self._library.cublasLtMatmulAlgoConfigSetAttribute(
            ctypes.byref(changed),
            attribute,
            ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )
        return bytes(changed).hex() if status == 0 else algorithm

    def _guesses(self, plan: _Plan, most: int, workspace_bytes: int) -> list[str]:
        preference = ctypes.c_void_p()
        library = self._library
        _check(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)), "preference")
        limits = (
            (_PREFERENCE_MAX_WORKSPACE, ctypes.c_uint64(workspace_bytes)),
            (_PREFERENCE_REDUCTIONS, ctypes.c_uint32(_EXACT_REDUCTIONS)),
        )
        for name, limit in limits:
            size = ctypes.c_size_t(ctypes.sizeof(limit))
            status = library.cublasLtMatmulPreferenceSetAttribute(
                preference, name, ctypes.byref(limit), size
            )
            _check(status, "preference")
        found = (_Heuristic * most)()
        count = ctypes.c_int()
        status = library.cublasLtMatmulAlgoGetHeuristic(
            self._handle,
            plan.operation,
            plan.weight,
            plan.x,
            plan.out,
            plan.out,
            preference,
            most,
            found,
            ctypes.byref(count),
        )
        library.cublasLtMatmulPreferenceDestroy(preference)
        if status != 0:
            return []
        usable = [found[index] for index in range(count.value) if found[index].status == 0]
        return [bytes(result.algorithm).hex() for result in usable]

    def multiply(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        out: torch.Tensor,
        algorithm: str,
        *,
        add: bool = False,
    ) -> bool:
        """``out = x @ weight.T``, or ``out +=`` where ``add``, on the current stream.

        Args:
            algorithm: One of ``algorithms`` for this or a like product.

        Returns:
            Whether it was computed; false where the algorithm does not take this product.

        Raises:
            RuntimeError: The library failed.
        """
        pointers = x.data_ptr(), weight.data_ptr(), out.data_ptr()
        if any(pointer % _ALIGNMENT for pointer in pointers):
            return False
        product = _Product.of(x, weight, out)
        plan = self._plan(product)
        chosen = self._algorithm(algorithm)
        known = (product, algorithm)
        if known not in self._usable:
            if len(self._usable) >= _MOST_PLANS:
                self._usable.clear()
            self._usable[known] = self._takes(plan, chosen)
        if not self._usable[known]:
            return False
        status = self._library.cublasLtMatmul(
            self._handle,
            plan.operation,
            ctypes.byref(self._one),
            ctypes.c_void_p(pointers[1]),
            plan.weight,
            ctypes.c_void_p(pointers[0]),
            plan.x,
            ctypes.byref(self._one if add else self._zero),
            ctypes.c_void_p(pointers[2]),
            plan.out,
            ctypes.c_void_p(pointers[2]),
            plan.out,
            ctypes.byref(chosen),
            ctypes.c_void_p(self._workspace.data_ptr()),
            ctypes.c_size_t(WORKSPACE_BYTES),
            ctypes.c_void_p(torch.cuda.current_stream(x.device).cuda_stream),
        )
        _check(status, "cublasLtMatmul")
        return True

    def _takes(self, plan: _Plan, algorithm: _Algorithm) -> bool:
        result = _Heuristic()
        status = self._library.cublasLtMatmulAlgoCheck(
            self._handle,
            plan.operation,
            plan.weight,
            plan.x,
            plan.out,
            plan.out,
            ctypes.byref(algorithm),
            ctypes.byref(result),
        )
        return bool(status == 0 and result.workspace_bytes <= WORKSPACE_BYTES)

    def _algorithm(self, digits: str) -> _Algorithm:
        known = self._algorithms.get(digits)
        if known is None:
            known = self._algorithms[digits] = _Algorithm.from_buffer_copy(bytes.fromhex(digits))
        return known

    def _plan(self, product: _Product) -> _Plan:
        """The library counts by columns: a row-major [T, N] is its N × T, so weights come first."""
        known = self._plans.get(product)
        if known is not None:
            return known
        library = self._library
        if len(self._plans) >= _MOST_PLANS:
            for plan in self._plans.values():
                library.cublasLtMatmulDescDestroy(plan.operation)
                for layout in (plan.weight, plan.x, plan.out):
                    library.cublasLtMatrixLayoutDestroy(layout)
            self._plans.clear()
        operation = ctypes.c_void_p()
        _check(
            library.cublasLtMatmulDescCreate(ctypes.byref(operation), _COMPUTE_32F, _TYPE_32F),
            "cublasLtMatmulDescCreate",
        )
        transposed = ctypes.c_int32(_TRANSPOSED)
        _check(
            library.cublasLtMatmulDescSetAttribute(
                operation,
                _TRANSPOSE_A,
                ctypes.byref(transposed),
                ctypes.c_size_t(ctypes.sizeof(transposed)),
            ),
            "cublasLtMatmulDescSetAttribute",
        )
        dtype, out_dtype = _TYPES[product.dtype], _TYPES[product.out_dtype]
        plan = self._plans[product] = _Plan(
            operation,
            self._layout(dtype, product.columns, product.num_rows, product.weight_stride),
            self._layout(dtype, product.columns, product.tokens, product.x_stride),
            self._layout(out_dtype, product.num_rows, product.tokens, product.out_stride),
        )
        return plan

    def _layout(self, kind: int, rows: int, columns: int, stride: int) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        _check(
            self._library.cublasLtMatrixLayoutCreate(
                ctypes.byref(layout),
                kind,
                ctypes.c_uint64(rows),
                ctypes.c_uint64(columns),
                ctypes.c_int64(stride),
            ),
            "cublasLtMatrixLayoutCreate",
        )
        return layout


@cache
def loaded(device: torch.device) -> CublasLt | None:
    """The library that torch uses on this device; ``None`` where it is not cuBLASLt's."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    major = torch.version.cuda.partition(".")[0]
    try:
        # By its soname: the loader answers with the copy that torch has opened.
        library = ctypes.CDLL(f"libcublasLt.so.{major}")
    except OSError:
        return None
    return CublasLt(device, library)


def _check(status: int, what: str) -> None:
    if status != 0:
        raise RuntimeError(f"cuBLASLt: {what} failed with status {status}")
