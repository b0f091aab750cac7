"""Compile candidate kernels in several processes at once, into Triton's cache on disk.

The processes run this module, so that nothing of the caller's program is imported in them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
import torch

from headrace.kernels.linear import hopper
from headrace.kernels.linear.triton import GemmChoice, GemmWorkspace, linear
from headrace.kernels.triton_launch import GpuTraits

_MOST_PROCESSES = 12


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One launch; dtypes by torch's names."""

    num_rows: int
    columns: int
    tokens: int
    dtype: str
    out_dtype: str
    choice: GemmChoice


def precompile(jobs: list[Job], device: torch.device) -> None:
    """Launch each job once in a worker process; one that fails will fail again when measured."""
    processes = min(_MOST_PROCESSES, os.cpu_count() or 1, len(jobs) // 4)
    if processes < 2:
        return
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "headrace.kernels.tuning.precompile", str(device)]
    workers = []
    for index in range(processes):
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
        if worker.stdin is not None:
            worker.stdin.write(msgspec.json.encode(jobs[index::processes]))
            worker.stdin.close()
        workers.append(worker)
    for worker in workers:
        worker.wait()


def compile_jobs(jobs: list[Job], device: torch.device) -> None:
    """Launch each job on a small weight; the compiler looks at its rows' divisibility only."""
    traits = GpuTraits.of(device)
    workspace = GemmWorkspace(device)
    for job in jobs:
        rows = 128 if job.num_rows % 16 == 0 else 127
        dtype, out_dtype = getattr(torch, job.dtype), getattr(torch, job.out_dtype)
        try:
            if job.choice.kind == "hopper":
                hopper.load("add", job.choice.rows, dtype, device)
            x = torch.zeros(job.tokens, job.columns, dtype=dtype, device=device)
            weight = torch.zeros(rows, job.columns, dtype=dtype, device=device)
            out = torch.empty(job.tokens, rows, dtype=out_dtype, device=device)
            linear(x, weight, None, out, job.choice, workspace, traits)
            torch.cuda.synchronize(device)
        except RuntimeError:
            continue


if __name__ == "__main__":
    listed = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Job])
    compile_jobs(listed, torch.device(sys.argv[1]))
