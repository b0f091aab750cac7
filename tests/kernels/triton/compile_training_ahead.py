"""Compile every training kernel for one GPU without having it; print one JSON line a kernel."""

from __future__ import annotations

import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headrace.kernels.activation.triton_backward import silu_mul_backward_kernel
from headrace.kernels.cross_entropy.triton import cross_entropy_kernel
from headrace.kernels.fp8_rows.triton import quantize_rows_kernel, transpose_bytes_kernel
from headrace.kernels.lora.triton import (
    add_input_gradient_kernel,
    down_gradient_kernel,
    down_project_kernel,
)
from headrace.kernels.nf4.triton import dequantize_kernel
from headrace.kernels.norm.triton_backward import rms_norm_backward_kernel
from headrace.kernels.rotary.triton_training import rotate_kernel, unrotate_packed_kernel

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
_LORA = {"DROPOUT": True, "TOKENS": 32, "COLUMNS": 128, "RANK": 16}
_HEADS = {"HEAD_DIM": 128, "HALF": 64, "HEADS": 8}
BUILDS = (
    (rms_norm_backward_kernel, {"HAS_SKIP": True, "BLOCK": 4096}, 8),
    (silu_mul_backward_kernel, {"BLOCK": 1024}, 4),
    (cross_entropy_kernel, {"BLOCK": 8192}, 16),
    (down_project_kernel, _LORA, 4),
    (down_gradient_kernel, _LORA, 4),
    (add_input_gradient_kernel, {**_LORA, "ADAPTERS": 2}, 4),
    (rotate_kernel, _HEADS, 4),
    (unrotate_packed_kernel, _HEADS, 4),
    (quantize_rows_kernel, {"HAS_FACTOR": True, "BLOCK": 4096}, 8),
    (transpose_bytes_kernel, {"TILE": 64}, 4),
    (dequantize_kernel, {"BYTES": 2048, "BLOCK": 64}, 8),
)
_TYPES = {
    "labels": "*i64", "seeds": "*i32", "losses": "*fp32", "partial": "*fp32", "cosine": "*fp32",
    "sine": "*fp32", "column_factor": "*fp32", "scales": "*fp32", "peaks": "*fp32",
    "codebook": "*fp32", "packed": "*u8", "source": "*u8", "eps": "fp32", "keep_scale": "fp32",
}  # fmt: skip
_INTEGERS = (
    "hidden",
    "width",
    "rank",
    "threshold",
    "period",
    "vocab_size",
    "row_tokens",
    "tokens_a_split",
)


def main() -> None:
    """Compile for the target named on the command line."""
    target = TARGETS[sys.argv[1]]
    for kernel, constants, warps in BUILDS:
        signature, values = {}, {}
        for index, name in enumerate(kernel.arg_names):
            if name in constants:
                signature[name], values[(index,)] = "constexpr", constants[name]
            elif name.endswith("_stride") or name.startswith("num_") or name in _INTEGERS:
                signature[name] = "i32"
            elif kernel is quantize_rows_kernel and name == "out":
                signature[name] = "*fp8e4nv"
            elif kernel is transpose_bytes_kernel and name == "out":
                signature[name] = "*u8"
            else:
                signature[name] = _TYPES.get(name, "*bf16")
        source = ASTSource(kernel, signature, values)
        compiled = triton.compile(source, target=target, options={"num_warps": warps})
        code = compiled.asm["amdgcn" if target.backend == "hip" else "ptx"]
        matrix = any(word in code for word in ("v_mfma", "mma.sync", "wgmma"))
        report = {"kernel": kernel.__name__, "shared": compiled.metadata.shared, "matrix": matrix}
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
