"""Time of a linear as a decode step meets it: in a graph, weights cold, after a small kernel."""

from __future__ import annotations

import statistics

import torch

from headrace.kernels.linear import cublaslt
from headrace.kernels.linear.triton import GemmChoice, GemmWorkspace, linear
from headrace.kernels.norm.triton import rms_norm
from headrace.kernels.triton_launch import GpuTraits

_MOST_ALGORITHMS = 32
_FEW_TOKENS = 256
_REPEATS, _REPEATS_OF_MANY = 5, 3
_COLD_BYTES = 400 << 20
"""Read between two uses of a weight: several times the L2 cache of any device."""


class ChainTimer:
    """Measures choices for one weight shape and number of tokens.

    A norm runs before each product, since what a choice hides behind its predecessor's end is part
    of its worth; the norm's own time is in every measurement alike.
    """

    def __init__(
        self,
        weights: list[torch.Tensor],
        tokens: int,
        out_dtype: torch.dtype,
        workspace: GemmWorkspace,
        traits: GpuTraits,
    ) -> None:
        """Use ``weights`` [N, K], equal in shape, in turn; a lone small one is copied.

        Raises:
            torch.cuda.OutOfMemoryError: So many tokens do not fit beside the model.
        """
        num_rows, columns = weights[0].shape
        # Where there are many tokens, reading the weight is a small part of the time.
        few = tokens <= _FEW_TOKENS
        self._repeats = _REPEATS if few else _REPEATS_OF_MANY
        cold_bytes = _COLD_BYTES if few else 0
        wanted = max(2, -(-cold_bytes // weights[0].nbytes))
        self._weights = (weights + [weights[0].clone() for _ in range(wanted - len(weights))])[
            :wanted
        ]
        like = weights[0]
        self._residual = torch.randn(tokens, columns, dtype=like.dtype, device=like.device)
        self._norm = torch.ones(columns, dtype=like.dtype, device=like.device)
        self._x = torch.empty_like(self._residual)
        self._out = torch.empty(tokens, num_rows, dtype=out_dtype, device=like.device)
        self._workspace = workspace
        self._traits = traits

    def library_algorithms(self) -> list[GemmChoice]:
        """What the vendor library offers beside the way that torch takes."""
        library = cublaslt.loaded(self._x.device)
        if library is None:
            return []
        found = library.algorithms(self._x, self._weights[0], self._out, _MOST_ALGORITHMS)
        return [GemmChoice(kind="cublaslt", algorithm=algorithm) for algorithm in found]

    def variants(self, choice: GemmChoice) -> list[GemmChoice]:
        """A ``cublaslt`` choice in the library's other clusters and walks over the tiles."""
        library = cublaslt.loaded(self._x.device)
        if library is None or choice.kind != "cublaslt":
            return []
        found = library.variants(self._x, self._weights[0], self._out, choice.algorithm)
        return [GemmChoice(kind="cublaslt", algorithm=algorithm) for algorithm in found]

    def _chain(self, choice: GemmChoice) -> None:
        for weight in self._weights:
            rms_norm(self._residual, self._norm, 1e-5, self._x, self._traits)
            linear(self._x, weight, None, self._out, choice, self._workspace, self._traits)

    def microseconds(self, choice: GemmChoice) -> float:
        """Median time of the norm and the product.

        Raises:
            RuntimeError: The device cannot run this choice (out of shared memory, say).
        """
        self._chain(choice)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._chain(choice)
        graph.replay()
        times: list[float] = []
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        for _ in range(self._repeats):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times) * 1000 / len(self._weights)
