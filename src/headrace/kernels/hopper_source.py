"""Text of a Hopper kernel: the shared header, and the matrix instructions that it issues.

A ``wgmma`` instruction names every register of its result, so that its text follows from the shape.
"""

from __future__ import annotations

from importlib.resources import files

import torch

from headrace.kernels import cuda_source

ARCHITECTURE = "sm_90a"
MATRIX_ALIGNMENT = 1024
"""Bytes; of operands in shared memory."""

SHARED_MEMORY = 227 << 10
"""Bytes that one program may take."""


def header(dtype: torch.dtype) -> str:
    """``hopper.cuh`` for operands of this dtype, bfloat16 or float16."""
    text = files(__package__).joinpath("hopper.cuh").read_text()
    return f"constexpr bool kBfloat16 = {str(dtype == torch.bfloat16).lower()};\n{text}"


def product(name: str, columns: int, dtype: torch.dtype) -> str:
    """``name(float sums[columns / 2], u64 a, u64 b, int add)``: 64 x columns x 16.

    Both operands lie in shared memory, along K; ``add``: to the sums, which are replaced else.
    """
    return _wgmma(name, columns, dtype, "u64 a", ['"l"(a)'], "1, 1, 0, 0")


def product_of_registers(name: str, columns: int, dtype: torch.dtype) -> str:
    """The same with ``const u32* a``, four words a thread, and ``b`` across K."""
    words = [f'"r"(a[{index}])' for index in range(4)]
    return _wgmma(name, columns, dtype, "const u32* a", words, "1, 1, 1")


def compile_once(text: str) -> bytes:
    """A cubin of the whole text, which an earlier start may have compiled.

    Raises:
        CompilationError: As ``cuda_source.compile_source``.
    """
    return cuda_source.compile_once(text, ARCHITECTURE)


def _wgmma(
    name: str,
    columns: int,
    dtype: torch.dtype,
    first: str,
    first_operands: list[str],
    immediates: str,
) -> str:
    kind = "bf16" if dtype == torch.bfloat16 else "f16"
    count = columns // 2
    sums = ", ".join(f"%{index}" for index in range(count))
    b = count + len(first_operands)
    a = ", ".join(f"%{index}" for index in range(count, b))
    a = f"{{{a}}}" if len(first_operands) > 1 else a
    results = ", ".join(f'"+f"(sums[{index}])' for index in range(count))
    return (
        f"__device__ __forceinline__ void {name}(float (&sums)[{count}], {first},"
        " u64 b, int add) {\n"
        f'asm volatile("{{\\n.reg .pred add;\\nsetp.ne.b32 add, %{b + 1}, 0;\\n"\n'
        f'"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} {{{sums}}},"\n'
        f'" {a}, %{b}, add, {immediates};\\n}}"\n'
        f': {results} : {", ".join(first_operands)}, "l"(b), "r"(add));\n}}\n'
    )
