"""The ways to compute a linear on a GPU, as values that a tuner can measure and write down."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec
import torch
import triton

from headrace.kernels.linear import cublaslt, hopper
from headrace.kernels.linear.triton_gemv import gemv_kernel
from headrace.kernels.linear.triton_skinny import skinny_kernel
from headrace.kernels.triton_launch import GpuTraits


class GemmChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One way to compute ``out = x @ weight.T + bias``.

    Attributes:
        kind: ``library`` (what torch calls: cuBLAS, hipBLASLt), ``cublaslt`` (another of its
            algorithms), ``gemv``, ``skinny`` or ``hopper`` (for many tokens).
        rows: Weight rows of a program (hopper: of a tile).
        block_k: Columns of the weight read at a time.
        tokens: Tokens of a program (skinny).
        shares: Parts that K is split into (skinny).
        stages: Depth of the load pipeline (skinny).
        warps: Warps of a program.
        prefetch: Columns of each row asked into L2 before the inputs are waited for (skinny).
        algorithm: The library's own description of it (cublaslt).
    """

    kind: Literal["library", "cublaslt", "gemv", "skinny", "hopper"] = "library"
    rows: int = 0
    block_k: int = 0
    tokens: int = 0
    shares: int = 1
    stages: int = 1
    warps: int = 4
    prefetch: int = 0
    algorithm: str = ""

    def label(self) -> str:
        """A short name for tables."""
        if self.kind == "library":
            return "library"
        if self.kind == "cublaslt":
            return f"cublaslt {hashlib.sha256(self.algorithm.encode()).hexdigest()[:6]}"
        if self.kind == "gemv":
            return f"gemv {self.rows}x{self.block_k} w{self.warps}"
        if self.kind == "hopper":
            return f"hopper {self.rows}"
        return (
            f"skinny {self.rows}x{self.tokens}x{self.block_k}"
            f" /{self.shares} s{self.stages} w{self.warps} p{self.prefetch}"
        )


LIBRARY = GemmChoice()

_FEWEST_TOKENS_ADDED = 96
"""From so many tokens on a product adds to what is in its output at no cost."""


class GemmWorkspace:
    """Float32 partial tiles and tickets of split products, shared by all linears of a device."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self._outgrown: list[torch.Tensor] = []
        self.partial_sums = torch.empty(0, dtype=torch.float32, device=device)
        self.tickets = torch.zeros(1, dtype=torch.int32, device=device)

    def reserve(self, choice: GemmChoice, tokens: int, num_rows: int) -> None:
        """Make room for one product by ``choice``; what captured graphs may point to is kept."""
        if choice.kind != "skinny" or choice.shares == 1:
            return
        tiles = triton.cdiv(num_rows, choice.rows) * triton.cdiv(tokens, choice.tokens)
        sums = tiles * choice.shares * choice.rows * choice.tokens
        device = self.tickets.device
        if self.partial_sums.numel() < sums:
            self._outgrown.append(self.partial_sums)
            self.partial_sums = torch.empty(sums, dtype=torch.float32, device=device)
        if self.tickets.numel() < tiles:
            self._outgrown.append(self.tickets)
            self.tickets = torch.zeros(tiles, dtype=torch.int32, device=device)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    choice: GemmChoice,
    workspace: GemmWorkspace,
    traits: GpuTraits,
) -> None:
    """``out[T, N] = x[T, K] @ weight[N, K].T + bias[N]``; see ``reference.linear``.

    Args:
        out: dtype of ``x``, or float32.
        choice: Its limits must hold: ``gemv`` takes one token, ``library`` any.
    """
    tokens, columns = x.shape
    num_rows = weight.shape[0]
    if tokens == 0:
        return
    if choice.kind == "gemv":
        gemv_kernel[(triton.cdiv(num_rows, choice.rows),)](
            x,
            weight,
            weight if bias is None else bias,
            out,
            num_rows,
            K=columns,
            HAS_BIAS=bias is not None,
            ROWS=choice.rows,
            BLOCK_K=choice.block_k,
            num_warps=choice.warps,
            **traits.launch_options(),
        )
    elif choice.kind == "skinny":
        workspace.reserve(choice, tokens, num_rows)
        grid = (
            triton.cdiv(tokens, choice.tokens),
            choice.shares,
            triton.cdiv(num_rows, choice.rows),
        )
        skinny_kernel[grid](
            x,
            weight,
            weight if bias is None else bias,
            out,
            workspace.partial_sums,
            workspace.tickets,
            tokens,
            num_rows,
            K=columns,
            x_stride=x.stride(0),
            out_stride=out.stride(0),
            HAS_BIAS=bias is not None,
            ROWS=choice.rows,
            TOKENS=choice.tokens,
            BLOCK_K=choice.block_k,
            SHARES=choice.shares,
            STAGES=choice.stages,
            PREFETCH=choice.prefetch,
            num_warps=choice.warps,
            **traits.launch_options(),
        )
    elif choice.kind == "hopper" and bias is None and hopper.takes(x, weight, out):
        hopper.product(x, weight, out, "store", choice.rows, traits)
    elif choice.kind == "cublaslt" and bias is None:
        _cublaslt_linear(x, weight, out, choice)
    else:
        library_linear(x, weight, bias, out)


def can_add(choice: GemmChoice, tokens: int) -> bool:
    """Whether ``add_linear`` is the faster way, where ``choice`` is that of the product."""
    return tokens >= _FEWEST_TOKENS_ADDED and choice.kind in ("library", "cublaslt", "hopper")


def add_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    choice: GemmChoice,
    traits: GpuTraits,
) -> None:
    """``out += x @ weight.T``, the sum rounded once.

    Args:
        choice: What ``can_add`` accepts; any other leaves it to the library.
    """
    if choice.kind == "hopper" and hopper.takes(x, weight, out):
        hopper.product(x, weight, out, "add", choice.rows, traits)
        return
    if choice.kind == "cublaslt":
        library = cublaslt.loaded(x.device)
        if library is not None and library.multiply(x, weight, out, choice.algorithm, add=True):
            return
    out.addmm_(x, weight.T)


def _cublaslt_linear(
    x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, choice: GemmChoice
) -> None:
    """An algorithm may refuse strides or alignments that it was not measured with."""
    library = cublaslt.loaded(x.device)
    if library is None or not library.multiply(x, weight, out, choice.algorithm):
        library_linear(x, weight, None, out)


def library_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """The same through torch's matrix product (cuBLAS or hipBLASLt)."""
    if out.dtype == x.dtype:
        if bias is None:
            torch.mm(x, weight.T, out=out)
        else:
            torch.addmm(bias, x, weight.T, out=out)
        return
    torch.mm(x, weight.T, out_dtype=out.dtype, out=out)
    if bias is not None:
        out += bias
