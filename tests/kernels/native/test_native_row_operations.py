"""Norms, activation, embedding and greedy choice against their plain torch references."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from headrace.kernels import native
from headrace.kernels.activation.reference import silu_mul
from headrace.kernels.norm.reference import add_rms_norm, gather_add_rms_norm, rms_norm
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.operations import GGUFBlocks, WeightPart

WIDTHS = [1, 15, 64, 577]


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """To one rounding of ``dtype``."""
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(
        actual.float(), expected.float(), rtol=tolerance, atol=1e-5, equal_nan=True
    )


@pytest.mark.parametrize("hidden", WIDTHS)
def test_norms(backend: NativeCpuBackend, dtype: torch.dtype, hidden: int) -> None:
    torch.manual_seed(0)
    residual, delta = torch.randn(5, hidden), torch.randn(5, hidden).to(dtype)
    residual[3, 0] = float("nan")
    weight = torch.randn(hidden).to(dtype)
    out, expected = torch.empty(5, hidden, dtype=dtype), torch.empty(5, hidden, dtype=dtype)

    rms_norm(residual, weight, 1e-5, expected)
    backend.operations.rms_norm(residual, weight, 1e-5, out)
    close(out, expected, dtype)

    chosen = torch.tensor([4, 0, 3], dtype=torch.int32)
    few, few_expected = out[:3].clone(), out[:3].clone()
    gather_add_rms_norm(delta, residual, weight, 1e-5, chosen, few_expected)
    backend.operations.gather_add_rms_norm(delta, residual, weight, 1e-5, chosen, few)
    close(few, few_expected, dtype)

    updated, updated_expected = residual.clone(), residual.clone()
    add_rms_norm(delta, updated_expected, weight, 1e-5, expected)
    backend.operations.add_rms_norm(delta, updated, weight, 1e-5, out)
    torch.testing.assert_close(updated, updated_expected, rtol=0, atol=0, equal_nan=True)
    close(out, expected, dtype)


@pytest.mark.parametrize("width", WIDTHS)
def test_gather_rows(backend: NativeCpuBackend, dtype: torch.dtype, width: int) -> None:
    source, rows = torch.randn(5, width).to(dtype), torch.tensor([4, 0, 4], dtype=torch.int32)
    out = torch.empty(4, width, dtype=dtype)
    backend.operations.gather_rows(source, rows, out[:3])
    assert torch.equal(out[:3], source[rows.long()])
    with pytest.raises(IndexError, match=r"sampled_tokens\[1\] is 5, which is not in \[0, 5\)"):
        backend.operations.gather_rows(source, torch.tensor([0, 5], dtype=torch.int32), out[:2])


@pytest.mark.parametrize("width", [*WIDTHS, 1536])
def test_silu_mul(backend: NativeCpuBackend, dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(3, 2 * width) * 30).to(dtype)
    gate_up[1, 0] = float("nan")
    gate_up[2, 0] = float("inf")
    gate_up[2, width] = 1.0
    out, expected = torch.empty(3, width, dtype=dtype), torch.empty(3, width, dtype=dtype)
    silu_mul(gate_up, expected)
    backend.operations.silu_mul(gate_up, out)
    close(out, expected, dtype)


def test_silu_mul_of_gates_that_are_as_large_as_numbers_get(
    backend: NativeCpuBackend, dtype: torch.dtype
) -> None:
    """A sigmoid that is nearly 0 would be seen beside them: it has to be 0."""
    gates = torch.tensor([-3e38, -1e36, -1e4, -89.0, -88.0, -80.0, 80.0, 89.0, 1e4, 3e38])
    gates = torch.cat([gates, torch.tensor([float("inf"), -float("inf")])])
    gate_up = torch.cat([gates, torch.ones(12)])[None].to(dtype)
    out, expected = torch.empty(1, 12, dtype=dtype), torch.empty(1, 12, dtype=dtype)
    silu_mul(gate_up, expected)
    backend.operations.silu_mul(gate_up, out)
    close(out, expected, dtype)


@pytest.mark.parametrize("kind", ["dense", "Q4_0", "Q4_1", "Q8_0"])
def test_embedding(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    kind: str,
    random_blocks: Callable[[int, int, str], GGUFBlocks],
) -> None:
    part = torch.randn(75, 64).to(dtype) if kind == "dense" else random_blocks(75, 64, kind)
    wide = dequantize(part, torch.float32) if isinstance(part, GGUFBlocks) else part.float()
    ids = torch.tensor([74, 0, 31, 32, 74], dtype=torch.int32)
    out = torch.empty(5, 64)
    backend.operations.embed(ids, backend.operations.pack_embedding(part), out)
    torch.testing.assert_close(out, wide[ids.long()], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("vocab", [1, 15, 100, 4099])
def test_greedy(instruction_set: str, vocab: int) -> None:
    torch.manual_seed(0)
    extension = native.extension()
    logits = torch.randn(6, vocab) * 5
    logits[1, vocab // 2 :] = logits[1].max() + 1  # A tie: the first of them counts.
    token, peak, logprob = torch.empty(6, dtype=torch.int32), torch.empty(6), torch.empty(6)
    pool = extension.ThreadPool(2)
    extension.greedy(pool, instruction_set, logits, token, peak, logprob)
    best = logits.max(-1).values
    expected = (logits == best[:, None]).int().argmax(-1)
    assert token.tolist() == expected.tolist()
    assert torch.equal(peak, best)
    torch.testing.assert_close(logprob, best - logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("place", [0, 700, 1040])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_greedy_marks_rows_without_a_finite_choice(
    instruction_set: str, place: int, sign: float
) -> None:
    logits = torch.randn(4, 1041)
    logits[1, place] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    logits[2, place] = sign * float("inf")
    backend = NativeCpuBackend(instruction_set=instruction_set, threads=2)
    token_ids, valid = backend.token_choices.most_likely(logits)
    assert valid.tolist() == [True, False, sign < 0, True]
    assert token_ids[[0, 3]].tolist() == logits[[0, 3]].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["dense", "Q4_1"])
@pytest.mark.parametrize("width", [64, 40])
def test_gated_linear_is_its_two_steps(
    backend: NativeCpuBackend,
    dtype: torch.dtype,
    kind: str,
    width: int,
    random_blocks: Callable[[int, int, str], GGUFBlocks],
) -> None:
    """With tiles that pair (64) and with tiles that do not (40); alone and beside other rows."""
    torch.manual_seed(0)
    part: WeightPart = torch.randn(2 * width, 96).to(dtype)
    if kind != "dense":
        part = random_blocks(2 * width, 96, kind)
    weight = backend.operations.pack_linear([part], None)
    x = torch.randn(13, 96).to(dtype)
    gate_up, out = torch.empty(13, 2 * width), torch.empty(13, width, dtype=dtype)
    backend.operations.linear(x, weight, gate_up)
    expected = torch.nn.functional.silu(gate_up[:, :width]) * gate_up[:, width:]
    scratch = torch.empty(13, 2 * width, dtype=dtype)
    backend.operations.gated_linear(x, weight, scratch, out)
    limit = 2e-2 if dtype is torch.bfloat16 else 1e-5
    assert float((out.float() - expected).norm() / expected.norm()) < limit
    alone = torch.empty(1, width, dtype=dtype)
    backend.operations.gated_linear(x[4:5], weight, scratch[:1], alone)
    assert torch.equal(alone[0], out[4])
