"""Programmatic dependent launch (Hopper and later): a kernel starts while its predecessor ends.

A kernel launched with ``launch_pdl`` may start once every program of the kernel before it has
called ``griddepcontrol.launch_dependents``; ``griddepcontrol.wait`` then blocks until that kernel
is complete and its writes are visible. Every kernel here lets its successor start at once, reads
only weights before the wait, and waits in every program before anything else (also before an
early exit), so that a chain of waits stays a chain of completions. CUDA C++ Programming Guide,
"Programmatic Dependent Launch and Synchronization".
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from headrace.hardware.switches import is_on
from headrace.kernels import cuda_source


@dataclass(frozen=True, slots=True)
class GpuTraits:
    """What launch choices ask of a GPU.

    Attributes:
        multiprocessors: Streaming multiprocessors or compute units.
        shared_memory: Bytes of shared memory (LDS) that one program may take.
        dependent_launch: Programmatic dependent launch works (NVIDIA, compute capability >= 9).
        wide_matrix_unit: Matrix instructions read operands from shared memory (Hopper's wgmma).
        warpgroup_kernels: Kernels in CUDA C++ for compute capability 9.0 run here, and there is a
            compiler for them.
    """

    multiprocessors: int
    shared_memory: int
    dependent_launch: bool
    wide_matrix_unit: bool
    warpgroup_kernels: bool = False

    @classmethod
    def of(cls, device: torch.device) -> GpuTraits:
        """What torch knows of a CUDA or ROCm device."""
        properties = torch.cuda.get_device_properties(device)
        hopper_or_later = torch.version.hip is None and properties.major >= 9
        return cls(
            multiprocessors=properties.multi_processor_count,
            shared_memory=getattr(
                properties, "shared_memory_per_block_optin", properties.shared_memory_per_block
            ),
            dependent_launch=hopper_or_later and is_on("DEPENDENT_LAUNCH"),
            wide_matrix_unit=hopper_or_later,
            warpgroup_kernels=(
                hopper_or_later
                and (properties.major, properties.minor) == (9, 0)
                and cuda_source.compiler() is not None
            ),
        )

    def launch_options(self) -> dict[str, bool]:
        """Keyword arguments of every launch, ``PDL`` (which each kernel takes) among them."""
        if self.dependent_launch:
            return {"PDL": True, "launch_pdl": True}
        return {"PDL": False}


@triton.jit
def start_dependents(PDL: tl.constexpr):
    """Let the next kernel start as soon as every program of this one has come here."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Block until the kernel before this one is complete and its writes are visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()


@triton.jit
def prefetch_to_l2(pointers, PDL: tl.constexpr):
    """Ask for the 128-byte line under each pointer, without waiting for it."""
    if PDL:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [pointers.to(tl.uint64, bitcast=True)],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )
