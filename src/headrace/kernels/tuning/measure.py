"""Time of a linear as a decode step meets it: in a graph, weights cold, after a small kernel."""

from __future__ import annotations

import statistics

import torch

from headrace.kernels.linear.triton import GemmChoice, GemmWorkspace, linear
from headrace.kernels.norm.triton import rms_norm
from headrace.kernels.triton_launch import GpuTraits

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
        """Use ``weights`` [N, K], equal in shape, in turn; a lone small one is copied."""
        num_rows, columns = weights[0].shape
        wanted = max(2, -(-_COLD_BYTES // weights[0].nbytes))
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

    def _chain(self, choice: GemmChoice) -> None:
        for weight in self._weights:
            rms_norm(self._residual, self._norm, 1e-5, self._x, self._traits)
            linear(self._x, weight, None, self._out, choice, self._workspace, self._traits)

    def microseconds(self, choice: GemmChoice, repeats: int = 5) -> float:
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
        for _ in range(repeats):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times) * 1000 / len(self._weights)
