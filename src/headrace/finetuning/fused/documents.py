"""Where the documents of packed rows begin, from position ids."""

from __future__ import annotations

import torch

from headrace.finetuning.fused.attention import Documents


def find_documents(position_ids: torch.Tensor) -> Documents | None:
    """The documents of a batch, or ``None`` where every row is one.

    A document begins where a position is not one more than the one before it, and with each row.
    Reads a few numbers from the device, which waits for it.

    Args:
        position_ids: [rows, S].
    """
    rows, length = position_ids.shape
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    starts = begins.reshape(-1).nonzero()[:, 0]
    if starts.numel() == rows:
        return None
    end = starts.new_tensor([rows * length])
    bounds = torch.cat((starts, end)).to(torch.int32)
    return Documents(bounds, int(bounds.diff().max()))
