"""A GPU engine's kernels compiled in processes beside the tuner's, into Triton's cache on disk.

At the first start compiling one kernel after the other would take longer than all else. Each part
is launched once at a tiny size with the launch choices of the real one; a part that fails is
compiled later, where it is needed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import numpy as np
import torch

from headrace.kernels.attention import hopper as prompts
from headrace.kernels.attention import triton as paged
from headrace.kernels.linear import hopper, triton_gated
from headrace.kernels.triton_launch import GpuTraits
from headrace.link.sampling import SamplingParams
from headrace.modeling.operations import AttentionShape
from headrace.modeling.sampling.device_sampler import DeviceSampler

_PROMPT = 128
_SAMPLED_ROWS = 33
"""More than the most likely token's search takes as few."""

_EVERYTHING = SamplingParams(
    do_sample=True, top_k=50, top_p=0.9, typical_p=0.9, repetition_penalty=1.1, logprobs=True,
    top_n_tokens=5, seed=0,
)  # fmt: skip


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one process compiles.

    Attributes:
        kind: Attention of single tokens, that of prompts, gated products of few tokens and of many,
            or sampling.
        sequences: Numbers of sequences of decode steps (attention).
        shape: Of the attention (attention).
        block_size: Of the cache (attention).
        max_blocks: Of one sequence (attention).
        inner: Width of the gated product (gated).
        hidden: Its input's (gated).
        vocab_size: Of the logits (sampling).
    """

    kind: Literal["decode attention", "prompt attention", "gated", "gated prompts", "sampling"]
    dtype: str
    sequences: list[int] = []
    shape: AttentionShape | None = None
    block_size: int = 16
    max_blocks: int = 1
    inner: int = 0
    hidden: int = 0
    vocab_size: int = 0


def parts_of(
    shapes: Sequence[tuple[AttentionShape, int]],
    sequences: Sequence[int],
    max_blocks: int,
    inner: int,
    hidden: int,
    vocab_size: int,
    dtype: torch.dtype,
    traits: GpuTraits,
) -> list[Part]:
    """The parts of a model, each of about as much work.

    Args:
        shapes: Every attention shape of the model, with its cache's block size.
        sequences: Numbers of sequences of decode steps.
    """
    name = str(dtype).removeprefix("torch.")
    parts = [
        Part(kind="gated", dtype=name, inner=inner, hidden=hidden),
        Part(kind="sampling", dtype=name, vocab_size=vocab_size),
    ]
    if traits.warpgroup_kernels:
        parts.append(Part(kind="gated prompts", dtype=name))
    for shape, block_size in shapes:
        prompts = Part(
            kind="prompt attention",
            dtype=name,
            shape=shape,
            block_size=block_size,
            max_blocks=max_blocks,
        )
        different = {
            paged.choose_decode_tiling(
                count,
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                max_blocks * block_size,
                traits,
            ): count
            for count in sequences
        }
        counts = sorted(different.values())
        parts.append(prompts)
        for half in filter(None, (counts[::2], counts[1::2])):
            parts.append(msgspec.structs.replace(prompts, kind="decode attention", sequences=half))
    return parts


def start(parts: Sequence[Part], device: torch.device) -> Callable[[], None]:
    """Begin a process a part; what is returned waits for them all."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "headrace.modeling.backends.precompile", str(device)]
    workers = []
    for part in parts:
        # What a worker has to say, the main process will say again if it matters.
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        workers.append(worker)
        # One that has ended already compiles nothing, and stops nobody.
        with contextlib.suppress(BrokenPipeError):
            if worker.stdin is not None:
                worker.stdin.write(msgspec.json.encode(part))
                worker.stdin.close()

    def wait() -> None:
        for worker in workers:
            worker.wait()

    return wait


def compile_part(part: Part, device: torch.device) -> None:
    """Launch every kernel of a part once."""
    traits = GpuTraits.of(device)
    dtype = getattr(torch, part.dtype)
    if part.kind == "gated":
        _gated(part, dtype, device, traits)
    elif part.kind == "gated prompts":
        for rows in hopper.GATED_ROWS:
            hopper.load("gated", rows, dtype, device)
    elif part.kind == "sampling":
        _sampling(part, device, traits)
    elif part.kind == "decode attention":
        for count in part.sequences:
            _attention(part, count, count, 1, dtype, device, traits)
    else:
        _prompt_kernel(part, dtype, device, traits)
        for count in (1, 2):
            _attention(part, _PROMPT, count, _PROMPT, dtype, device, traits)
    torch.cuda.synchronize(device)


def _prompt_kernel(part: Part, dtype: torch.dtype, device: torch.device, traits: GpuTraits) -> None:
    shape = part.shape
    if shape is None:
        return
    heads = shape.num_heads, shape.num_kv_heads
    if prompts.takes(*heads, shape.head_dim, shape.sliding_window, traits):
        prompts.load(shape.head_dim, heads[0] // heads[1], dtype, device)


def _attention(
    part: Part,
    tokens: int,
    sequences: int,
    max_query_length: int,
    dtype: torch.dtype,
    device: torch.device,
    traits: GpuTraits,
) -> None:
    """Over empty contexts: the kernels find nothing to do."""
    shape = part.shape
    if shape is None:
        return
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    size = 2, shape.num_kv_heads, part.block_size, shape.head_dim
    keys, values = (
        torch.zeros(size, dtype=dtype, device=device).permute(0, 2, 1, 3) for _ in range(2)
    )

    def zeros(*lengths: int) -> torch.Tensor:
        return torch.zeros(*lengths, dtype=torch.int32, device=device)

    paged.paged_attention(
        torch.zeros(tokens, width, dtype=dtype, device=device),
        shape.num_heads,
        shape.num_kv_heads,
        shape.scale,
        shape.sliding_window,
        keys,
        values,
        zeros(sequences + 1),
        zeros(sequences),
        zeros(sequences),
        zeros(max(sequences, 2), part.max_blocks),
        torch.zeros(tokens, shape.num_heads * shape.head_dim, dtype=dtype, device=device),
        max_query_length,
        part.max_blocks * part.block_size,
        paged.AttentionWorkspace(device),
        traits,
    )


def _gated(part: Part, dtype: torch.dtype, device: torch.device, traits: GpuTraits) -> None:
    weight = torch.zeros(2 * part.inner, part.hidden, dtype=dtype, device=device)
    for tokens in (1, *triton_gated.TILES):
        x = torch.zeros(tokens, part.hidden, dtype=dtype, device=device)
        out = torch.empty(tokens, part.inner, dtype=dtype, device=device)
        triton_gated.gated_linear(x, weight, None, out, traits)


def _sampling(part: Part, device: torch.device, traits: GpuTraits) -> None:
    rows = np.arange(_SAMPLED_ROWS, dtype=np.int32)
    on_device = torch.from_numpy(rows).to(device)
    sampler = DeviceSampler(_SAMPLED_ROWS, 64, 64, part.vocab_size, device, traits)
    logits = torch.zeros(_SAMPLED_ROWS, part.vocab_size, dtype=torch.float32, device=device)
    sampler.sample(logits, rows, rows, on_device)
    sampler.set_row(0, _EVERYTHING, [0], [], ())
    sampler.sample(logits[:1], rows[:1], rows[:1], on_device[:1])
    sampler.token_logprobs(logits, 0, on_device, 0, 1)
    sampler.feed(torch.zeros_like(on_device), on_device[:1], on_device[:1])


if __name__ == "__main__":
    compile_part(msgspec.json.decode(sys.stdin.buffer.read(), type=Part), torch.device(sys.argv[1]))
