"""Compile every Triton kernel for one GPU without having it; print one JSON line a kernel.

Run as a script with a target (``sm_90``, ``gfx942``, ``gfx950``): a fault of the compiler ends
this process, not the test run.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headrace.kernels.activation.triton import silu_mul_kernel
from headrace.kernels.attention.triton import (
    can_read_fresh,
    choose_decode_tiling,
    choose_prefill_tiling,
)
from headrace.kernels.attention.triton_decode import decode_attention_kernel
from headrace.kernels.attention.triton_prefill import prefill_attention_kernel
from headrace.kernels.embedding.triton import embed_kernel
from headrace.kernels.linear.triton_gated import TILES as GATED_TILES
from headrace.kernels.linear.triton_gated import gated_gemv_kernel, gated_skinny_kernel
from headrace.kernels.linear.triton_gemv import gemv_kernel
from headrace.kernels.linear.triton_skinny import skinny_kernel
from headrace.kernels.low_rank.triton import (
    narrow_block_kernel,
    narrow_token_kernel,
    widen_block_kernel,
    widen_token_kernel,
)
from headrace.kernels.norm.triton import rms_norm_kernel
from headrace.kernels.rotary.triton import rotate_and_cache_kernel
from headrace.kernels.sampling.row_parameters import COLUMNS
from headrace.kernels.sampling.triton import most_likely_kernel
from headrace.kernels.sampling.triton_draw import draw_kernel
from headrace.kernels.sampling.triton_logprobs import logprob_kernel
from headrace.kernels.sampling.triton_rows import count_kernel, feed_kernel
from headrace.kernels.step_inputs.triton import publish_kernel
from headrace.kernels.triton_launch import GpuTraits

TARGETS = {
    "sm_90": (GPUTarget("cuda", 90, 32), GpuTraits(132, 232448, True, True)),
    "gfx942": (GPUTarget("hip", "gfx942", 64), GpuTraits(304, 65536, False, False)),
    "gfx950": (GPUTarget("hip", "gfx950", 64), GpuTraits(256, 163840, False, False)),
}
FLOAT16_BUILDS = {"skinny 16", "skinny 64", "decode_attention 128", "prefill_attention 128"}
_INTEGERS = {
    "token_ids", "rows", "positions", "cache_slots", "query_start", "context_lengths",
    "block_tables", "tickets", "partial_ids", "sampled_tokens", "adapter_of_token",
    "last_tokens", "parameters", "adjusted_ids", "near_ids", "fed_tokens", "fed_rows",
    "occurrences", "staged", "step",
}  # fmt: skip
_WIDE_INTEGERS = {"pieces", "columns", "top_ids"}
_SHORT_INTEGERS = {"counts", "row_counts"}
_FLOATS = {
    "logits", "partial_peaks", "cos_sin", "partial_sums", "partial_stats", "narrow", "scales",
    "reals", "adjusted_by", "adjusted_from", "log_totals", "logprobs", "near_values",
    "top_logprobs",
}  # fmt: skip
_PLAIN_SIZES = {
    "hidden", "width", "vocab_size", "slice_size", "row", "first", "first_row",
    "beside", "max_tokens", "row_capacity", "changed_places", "changed_blocks",
}  # fmt: skip
_SIZES = {"hidden", "width", "vocab_size", "slice_size"}
_REALS = {"eps", "scale_log2"}


@dataclass(frozen=True)
class Build:
    """One kernel with its compile-time constants; ``dot``: it must use matrix instructions."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    warps: int
    dot: bool = False


def builds(traits: GpuTraits) -> list[Build]:
    """The hot launches of a Llama-3-8B-shaped model, and the other head sizes of attention."""
    pdl = {"PDL": traits.dependent_launch}
    listed = [
        Build(
            "add_rms_norm",
            rms_norm_kernel,
            {"HAS_DELTA": True, "UPDATE_RESIDUAL": True, "GATHER": False, "BLOCK": 4096} | pdl,
            8,
        ),
        Build("silu_mul", silu_mul_kernel, {"BLOCK": 1024} | pdl, 4),
        Build("most_likely", most_likely_kernel, {"SLICES": 32, "BLOCK": 2048} | pdl, 4),
        Build(
            "draw",
            draw_kernel,
            {"COLUMNS": COLUMNS, "NEAR": 4096, "CHUNKS": 32, "BLOCK": 4096} | pdl,
            16,
        ),
        Build("publish", publish_kernel, {"TOKEN_FIELDS": 6, "FIELDS": 12, "BLOCK": 512} | pdl, 4),
        Build("feed", feed_kernel, {"BLOCK": 256} | pdl, 4),
        Build("count", count_kernel, {"BLOCK": 4096} | pdl, 16),
        *(
            Build(
                f"logprob sampled={sampled}",
                logprob_kernel,
                {"COLUMNS": COLUMNS, "SAMPLED": sampled, "LANES": 4096, "DEPTH": 32} | pdl,
                16,
            )
            for sampled in (False, True)
        ),
        Build("embed", embed_kernel, {"BLOCK": 1024} | pdl, 4),
        Build(
            "rotate_and_cache norm",
            rotate_and_cache_kernel,
            {
                "HAS_NORM": True,
                "KEYS_IN_PLACE": True,
                "BLOCK_SIZE": 16,
                "HEAD_DIM": 128,
                "HALF": 64,
                "HEADS": 8,
            }
            | pdl,
            4,
        ),
        Build(
            "gemv",
            gemv_kernel,
            {"K": 4096, "HAS_BIAS": False, "ROWS": 8, "BLOCK_K": 1024} | pdl,
            4,
        ),
    ]
    for name, kernel, constants, dot in (
        ("narrow token", narrow_token_kernel, {"BLOCK_K": 256}, False),
        ("widen token", widen_token_kernel, {"COLUMNS": 256}, False),
        ("narrow block", narrow_block_kernel, {"TOKENS": 16, "BLOCK_K": 128}, True),
        ("widen block", widen_block_kernel, {"TOKENS": 16, "COLUMNS": 128}, True),
    ):
        constants = constants | {"PROJECTIONS": 3, "ROWS": 16} | pdl
        listed.append(Build(f"low_rank {name}", kernel, constants, 4, dot))
    for tokens, warps in ((16, 4), (64, 4), (128, 8)):
        if traits.shared_memory <= 65536 and tokens > 64:
            continue
        constants = {
            "K": 4096, "HAS_BIAS": False, "ROWS": 64 if tokens < 128 else 128, "TOKENS": tokens,
            "BLOCK_K": 64, "SHARES": 4, "STAGES": 2, "PREFETCH": 64,
        }  # fmt: skip
        listed.append(Build(f"skinny {tokens}", skinny_kernel, constants | pdl, warps, dot=True))
    common = {"K": 4096, "HAS_BIAS": False}
    listed.append(
        Build("gated gemv", gated_gemv_kernel, common | {"ROWS": 2, "BLOCK_K": 2048} | pdl, 4)
    )
    for tokens, (rows, _, block_k, stages, warps) in GATED_TILES.items():
        if (2 * rows + tokens) * block_k * 2 * stages > traits.shared_memory:
            block_k //= 2
        constants = common | {
            "ROWS": rows, "TOKENS": tokens, "BLOCK_K": block_k, "STAGES": stages, "PREFETCH": 512,
        }  # fmt: skip
        listed.append(
            Build(f"gated skinny {tokens}", gated_skinny_kernel, constants | pdl, warps, dot=True)
        )
    for head_dim in (64, 96, 128, 256):
        padded = triton.next_power_of_2(head_dim)
        shared = {
            "GROUP": 4, "HEAD_DIM": head_dim, "HEAD_DIM_PADDED": padded, "BLOCK_SIZE": 16,
            "WINDOW": 0,
        }  # fmt: skip
        decode = choose_decode_tiling(256, 32, 8, head_dim, 8192, traits)
        constants = shared | {
            "GROUP_PADDED": 16, "HEADS": decode.heads, "TILE": decode.tile, "RUN": 16,
            "SHARES": 2, "SMALLEST_SHARE": 128, "STAGES": decode.stages,
        }  # fmt: skip
        listed.append(
            Build(
                f"decode_attention {head_dim}",
                decode_attention_kernel,
                constants | pdl,
                decode.warps,
                dot=True,
            )
        )
        prefill = choose_prefill_tiling(head_dim, torch.bfloat16, traits)
        constants = shared | {
            "ROWS": prefill.rows, "TILE": prefill.tile, "BESIDE": True,
            "STAGES": prefill.stages, "READ_FRESH": can_read_fresh(head_dim, None, traits),
            "FRESH_STAGES": 3,
        }  # fmt: skip
        listed.append(
            Build(
                f"prefill_attention {head_dim}",
                prefill_attention_kernel,
                constants | pdl,
                prefill.warps,
                dot=True,
            )
        )
    return listed


def _samples(build: Build) -> bool:
    return build.kernel in (most_likely_kernel, draw_kernel) or build.constants.get(
        "SAMPLED", False
    )


def compile_one(build: Build, target: GPUTarget, half: str) -> dict[str, Any]:
    """What the compiler says of one kernel: spills, shared memory, matrix instructions."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(inspect.signature(build.kernel.fn).parameters):
        if name in build.constants:
            signature[name] = "constexpr"
            constants[(index,)] = build.constants[name]
            continue
        if build.constants.get("READ_FRESH") and name == "qkv_tiles":
            tile = f"{build.constants['TILE']},{build.constants['HEAD_DIM']}"
            signature[name] = f"tensordesc<{half}[{tile}]>"
            continue
        if name in _REALS:
            signature[name] = "fp32"
        elif name in _WIDE_INTEGERS or (name == "token_ids" and _samples(build)):
            signature[name] = "*i64"
        elif name in _SHORT_INTEGERS:
            signature[name] = "*i16"
        elif name in _INTEGERS:
            signature[name] = "*i32"
        elif name == "finite":
            signature[name] = "*i1"
        elif name in _FLOATS:
            signature[name] = "*fp32"
        elif name.endswith("stride") or name.startswith("num_") or name in _PLAIN_SIZES:
            signature[name] = "i32"
        else:
            signature[name] = f"*{half}"
        if signature[name].startswith("*") or name.endswith("stride"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    options: dict[str, Any] = {"num_warps": build.warps}
    if build.constants["PDL"]:
        options["launch_pdl"] = True
    source = ASTSource(build.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options)
    report: dict[str, Any] = {
        "kernel": build.name,
        "dtype": half,
        "dot": build.dot,
        "shared": compiled.metadata.shared,
    }
    if target.backend == "hip":
        assembly = compiled.asm["amdgcn"]
        report["spills"] = int(re.findall(r"\.vgpr_spill_count:\s*(\d+)", assembly)[0])
        report["matrix"] = assembly.count("v_mfma")
    else:
        assembly = compiled.asm["ptx"]
        report["spills"] = local_memory(compiled.asm["cubin"])
        report["matrix"] = assembly.count("wgmma.mma_async") + assembly.count("mma.sync")
        report["dependent"] = "griddepcontrol.wait" in assembly
    return report


def local_memory(cubin: bytes) -> int:
    """Bytes of stack and local memory of a thread, which is where NVIDIA spills registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


def main() -> None:
    """Compile for the target named on the command line; in float16 only what has a dot."""
    target, traits = TARGETS[sys.argv[1]]
    for half in ("bf16", "fp16"):
        for build in builds(traits):
            if half == "bf16" or build.name in FLOAT16_BUILDS:
                print(json.dumps(compile_one(build, target, half)), flush=True)


if __name__ == "__main__":
    main()
