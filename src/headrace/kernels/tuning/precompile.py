"""Compile candidate kernels in several processes at once, into Triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch

from headrace.kernels.linear.triton import GemmChoice, GemmWorkspace, linear
from headrace.kernels.triton_launch import GpuTraits

Job = tuple[int, int, int, torch.dtype, torch.dtype, GemmChoice]
"""Rows, columns, tokens, dtype of input, dtype of output, choice."""

_MOST_PROCESSES = 12


def precompile(jobs: list[Job], device: torch.device) -> None:
    """Launch each job once in a worker process; one that fails will fail again when measured."""
    processes = min(_MOST_PROCESSES, os.cpu_count() or 1, len(jobs) // 4)
    if processes < 2:
        return
    shares = [jobs[index::processes] for index in range(processes)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        list(pool.map(_compile, shares, [str(device)] * processes))


def _compile(jobs: list[Job], device_name: str) -> None:
    device = torch.device(device_name)
    traits = GpuTraits.of(device)
    workspace = GemmWorkspace(device)
    for num_rows, columns, tokens, dtype, out_dtype, choice in jobs:
        # The compiler looks at the number of rows for its divisibility only.
        rows = 128 if num_rows % 16 == 0 else 127
        try:
            x = torch.zeros(tokens, columns, dtype=dtype, device=device)
            weight = torch.zeros(rows, columns, dtype=dtype, device=device)
            out = torch.empty(tokens, rows, dtype=out_dtype, device=device)
            linear(x, weight, None, out, choice, workspace, traits)
            torch.cuda.synchronize(device)
        except RuntimeError:
            continue
