"""The low-rank updates of one linear by every adapter, in the one layout that all kernels read.

Many adapters over one base, chosen token by token, is the method of Punica (arXiv:2310.18547) and
S-LoRA (arXiv:2311.03285). Their ranks may differ: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """What one adapter adds to one projection: ``scale * up @ down`` to its weight.

    Attributes:
        down: [rank, K]; PEFT's ``lora_A``.
        up: [N, rank]; PEFT's ``lora_B``.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class LowRankStack:
    """Updates of a linear that stacks several projections, by all adapters.

    A *piece* is one adapter's update of one projection. The rows of ``down`` that belong to one
    adapter are consecutive, projection after projection.

    Attributes:
        down: [sum of ranks, K].
        up: [sum of rank * N_i], flat: each piece as [rank, N_i], the transpose of PEFT's.
        pieces: [adapters, projections, 3] int64: first row of ``down``, rank (0: this adapter
            leaves the projection alone), first element of ``up``.
        scales: [adapters, projections] float32.
        columns: [projections + 1] int64: first output column of each projection, then their sum.
        widths: N_i of each projection, in the order in which the linear stacks them.
        most_rows: Most rows of ``down`` of one adapter: the width of the narrow activations.
    """

    down: torch.Tensor
    up: torch.Tensor
    pieces: torch.Tensor
    scales: torch.Tensor
    columns: torch.Tensor
    widths: tuple[int, ...]
    most_rows: int

    @classmethod
    def build(
        cls,
        adapters: Sequence[Sequence[LowRankUpdate | None]],
        widths: Sequence[int],
        in_features: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LowRankStack:
        """Lay out ``adapters[a][i]``, adapter a's update of projection i.

        Args:
            widths: N_i of each projection.
            in_features: K.
            dtype: Of ``down`` and ``up``.

        Raises:
            ValueError: An update whose shape is not that of its projection.
        """
        downs, ups = [], []
        pieces = torch.zeros(len(adapters), len(widths), 3, dtype=torch.int64)
        scales = torch.zeros(len(adapters), len(widths))
        row = element = most_rows = 0
        for a, updates in enumerate(adapters):
            first = row
            for i, (update, width) in enumerate(zip(updates, widths, strict=True)):
                rank = 0 if update is None else update.down.shape[0]
                pieces[a, i] = torch.tensor([row, rank, element])
                if update is None:
                    continue
                if update.down.shape != (rank, in_features) or update.up.shape != (width, rank):
                    raise ValueError(
                        f"an update of [{width}, {in_features}] cannot be "
                        f"{tuple(update.up.shape)} @ {tuple(update.down.shape)}"
                    )
                scales[a, i] = update.scale
                downs.append(update.down.to(device, dtype))
                ups.append(update.up.to(device, dtype).T.reshape(-1))
                row += rank
                element += rank * width
            most_rows = max(most_rows, row - first)
        return cls(
            down=torch.cat(downs) if downs else torch.empty(0, in_features, dtype=dtype),
            up=torch.cat(ups) if ups else torch.empty(0, dtype=dtype),
            pieces=pieces.to(device),
            scales=scales.to(device),
            columns=torch.tensor([0, *accumulate(widths)], device=device),
            widths=tuple(widths),
            most_rows=most_rows,
        )

    @property
    def num_adapters(self) -> int:
        """Adapters, those that leave this linear alone among them."""
        return self.pieces.shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(t.nbytes for t in (self.down, self.up, self.pieces, self.scales))
