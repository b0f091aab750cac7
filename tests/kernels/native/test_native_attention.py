"""Rotation, cache writes and paged attention against their plain torch references."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from headrace.kernels.attention.reference import paged_attention
from headrace.kernels.rotary.reference import rotate_and_cache
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.operations import AttentionShape, HeadNorm
from headrace.modeling.step import StepInputs


def ints(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def through_eight_bits(heads: torch.Tensor) -> torch.Tensor:
    """Heads [..., head_dim] rounded to signed bytes with a scale each."""
    scale = heads.abs().amax(-1, keepdim=True) / 127
    return (heads / scale.clamp(min=1e-30)).round() * scale


@pytest.fixture(params=[False, True], ids=["own dtype", "int8"])
def eight_bits(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def backend(instruction_set: str, dtype: torch.dtype, eight_bits: bool) -> NativeCpuBackend:
    held = torch.int8 if eight_bits else None
    return NativeCpuBackend(dtype, 2, instruction_set, cache_dtype=held)


@dataclass
class Paged:
    """Sequences in scattered pages, held by the native cache and by the reference's."""

    backend: NativeCpuBackend
    dtype: torch.dtype
    shape: AttentionShape
    block_size: int
    contexts: list[int]
    norm: HeadNorm | None
    eight_bits: bool = False

    def __post_init__(self) -> None:
        pages = [-(-context // self.block_size) for context in self.contexts]
        total = sum(pages) + 1
        # Between two other layers, as in a model.
        layers = self.backend.operations.allocate_caches([self.shape] * 3, total, self.block_size)
        self.cache = layers[1]
        # What no sequence has written may be anything: as float32 scales these bytes are NaN.
        for layer in layers:
            layer.keys.fill_(255 if self.eight_bits else float("nan"))
            layer.values.fill_(255 if self.eight_bits else float("nan"))
        size = (total, self.block_size, self.shape.num_kv_heads, self.shape.head_dim)
        held = torch.float32 if self.eight_bits else self.dtype
        self.keys, self.values = torch.zeros(size).to(held), torch.zeros(size).to(held)
        self.tables = torch.zeros(len(pages), max(pages), dtype=torch.int32)
        scattered = torch.randperm(total).int()
        for row, count in enumerate(pages):
            self.tables[row, :count] = scattered[sum(pages[:row]) :][:count]
        self.cos_sin = torch.randn(max(self.contexts), self.shape.head_dim)

    def step(self, starts: list[int], ends: list[int]) -> StepInputs:
        """Positions ``starts[s]`` to ``ends[s]`` of each sequence that has any."""
        present = [s for s in range(len(starts)) if ends[s] > starts[s]]
        positions = torch.cat([torch.arange(starts[s], ends[s]) for s in present])
        owner = torch.cat([torch.full((ends[s] - starts[s],), s) for s in present])
        pages = self.tables[owner, positions // self.block_size]
        counts = torch.tensor([0] + [ends[s] - starts[s] for s in present])
        return StepInputs(
            token_ids=ints([0] * len(positions)),
            positions=positions.int(),
            cache_slots=(pages * self.block_size + positions % self.block_size).int(),
            query_start=counts.cumsum(0).int(),
            context_lengths=ints([ends[s] for s in present]),
            rows=ints(present),
            block_tables=self.tables,
            sampled_tokens=ints([0]),
            max_query_length=int(counts.max()),
            max_context_length=max(ends),
        )

    def native(self, qkv: torch.Tensor, step: StepInputs) -> torch.Tensor:
        out = torch.empty(len(qkv), self.shape.num_heads * self.shape.head_dim, dtype=self.dtype)
        operations = self.backend.operations
        operations.rotate_and_cache(qkv, self.cos_sin, self.norm, self.shape, self.cache, step)
        operations.attention(qkv, self.shape, self.cache, step, out)
        return out

    def reference(self, qkv: torch.Tensor, step: StepInputs) -> torch.Tensor:
        shape = self.shape
        rotate_and_cache(
            qkv,
            self.cos_sin,
            None if self.norm is None else self.norm.query,
            None if self.norm is None else self.norm.key,
            1e-5,
            shape.num_heads,
            shape.num_kv_heads,
            self.keys,
            self.values,
            step.positions,
            step.cache_slots,
        )
        if self.eight_bits:
            self.keys, self.values = through_eight_bits(self.keys), through_eight_bits(self.values)
        out = torch.empty(len(qkv), shape.num_heads * shape.head_dim)
        paged_attention(
            qkv,
            shape.num_heads,
            shape.num_kv_heads,
            shape.scale,
            shape.sliding_window,
            self.keys,
            self.values,
            step.query_start,
            step.context_lengths,
            step.rows,
            step.block_tables,
            out,
        )
        return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "block_size", "window", "normed"),
    [
        (9, 3, 64, 16, None, False),
        (8, 8, 32, 32, 24, True),
        (14, 2, 128, 16, None, True),
        (5, 1, 256, 48, 70, False),
    ],
)
def test_agrees_with_the_reference_in_any_mix(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    eight_bits: bool,
    heads: int,
    kv_heads: int,
    head_dim: int,
    block_size: int,
    window: int | None,
    normed: bool,
) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5, window)
    weights = torch.randn(2, head_dim).to(dtype)
    norm = HeadNorm(weights[0], weights[1], 1e-5) if normed else None
    ends = [3, 70, 131, 64, 17]
    paged = Paged(backend, dtype, shape, block_size, ends, norm, eight_bits)
    cut = [0, 69, 90, 63, 17]  # Prefill, decode, chunked prefill, decode, absent.
    for starts, stops in [([0] * 5, cut), (cut, ends)]:
        step = paged.step(starts, stops)
        qkv = torch.randn(len(step.positions), (heads + 2 * kv_heads) * head_dim).to(dtype)
        other = qkv.clone()
        expected, actual = paged.reference(other, step), paged.native(qkv, step)
        close = 1e-5 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(qkv, other, rtol=close, atol=1e-5)
        bound = 0.01
        if dtype == torch.float32:
            # Weights have 14 bits, and a key at half a step may be rounded the other way.
            bound = 1e-3 if eight_bits else 2e-6
        assert float((actual.float() - expected).norm() / expected.norm()) < bound


def test_chunks_batch_mix_and_threads_do_not_change_a_bit(
    instruction_set: str, dtype: torch.dtype, eight_bits: bool
) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(6, 2, 64, 0.125, 50)
    qkv = torch.randn(150, 10 * 64).to(dtype)
    results = []
    for threads, cuts in [(1, [150]), (2, [1, 17, 64, 149, 150]), (3, [90, 150])]:
        held = torch.int8 if eight_bits else None
        backend = NativeCpuBackend(dtype, threads, instruction_set, cache_dtype=held)
        torch.manual_seed(1)
        paged = Paged(backend, dtype, shape, 16, [150, 40], None, eight_bits)
        pieces, start = [], 0
        for cut in cuts:
            # Beside it a second sequence, here and there.
            step = paged.step([start, 0], [cut, 7 if start % 2 else 0])
            mixed = torch.cat((qkv[start:cut], torch.randn(7 if start % 2 else 0, 640).to(dtype)))
            pieces.append(paged.native(mixed, step)[: cut - start])
            start = cut
        results.append(torch.cat(pieces))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_long_context_is_shared_without_changing_a_bit(
    instruction_set: str, dtype: torch.dtype, eight_bits: bool
) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(6, 2, 64, 0.125, None)
    qkv = torch.randn(1100, 10 * 64).to(dtype)
    results = []
    for threads in (1, 2, 3):
        held = torch.int8 if eight_bits else None
        backend = NativeCpuBackend(dtype, threads, instruction_set, cache_dtype=held)
        torch.manual_seed(1)
        paged = Paged(backend, dtype, shape, 16, [1100, 600, 20], None, eight_bits)
        for ends in ([1098, 0, 0], [1098, 598, 18]):
            starts = [0, 0, 0] if ends[1] == 0 else [1098, 0, 0]
            paged.native(qkv[: sum(ends) - sum(starts)].clone(), paged.step(starts, ends))
        # Two tokens of each: rows of a block that see different numbers of positions.
        step = paged.step([1098, 598, 18], [1100, 600, 20])
        results.append(paged.native(qkv[-6:].clone(), step))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    # The same tokens at the end of a prefill in one piece.
    torch.manual_seed(1)
    paged = Paged(backend, dtype, shape, 16, [1100, 600, 20], None, eight_bits)
    prompt = torch.cat((qkv[:1098], qkv[-6:-4]))
    whole = paged.native(prompt, paged.step([0, 0, 0], [1100, 0, 0]))
    assert torch.equal(whole[-2:], results[0][:2])


def test_a_poisoned_sequence_spoils_no_other(
    backend: NativeCpuBackend, dtype: torch.dtype, eight_bits: bool
) -> None:
    torch.manual_seed(0)
    shape = AttentionShape(3, 1, 64, 0.125, None)
    paged = Paged(backend, dtype, shape, 16, [21, 21], None, eight_bits)
    step = paged.step([0, 0], [21, 21])
    qkv = torch.randn(42, 5 * 64).to(dtype)
    qkv[30] = float("nan")
    out = paged.native(qkv, step)
    assert torch.isfinite(out[:21]).all()
    assert torch.isnan(out[30:]).all()
