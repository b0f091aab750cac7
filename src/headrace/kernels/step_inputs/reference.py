"""Plain torch reference of publishing a step's inputs."""

from __future__ import annotations

import torch

from headrace.kernels.step_inputs.layout import StepLayout


def publish(
    staged: torch.Tensor,
    step: torch.Tensor,
    block_tables: torch.Tensor,
    layout: StepLayout,
    num_tokens: int,
    num_sequences: int,
    num_changed: int,
) -> None:
    """Copy the used part of every field and write the changed entries of the block tables.

    Args:
        staged: [layout.total] int32, written by the host.
        step: [layout.total] int32, read by the step's kernels.
        block_tables: [rows, blocks] int32, contiguous.
        num_tokens: Entries of the token fields that are used.
        num_sequences: One entry less than is used of the sequence fields.
        num_changed: Changed entries, no place twice.
    """
    for field in range(layout.token_fields + layout.row_fields):
        start = layout.start(field)
        count = num_tokens if field < layout.token_fields else num_sequences + 1
        step[start : start + count] = staged[start : start + count].to(step.device)
    places = staged[layout.changed_places :][:num_changed].long().to(step.device)
    blocks = staged[layout.changed_blocks :][:num_changed].to(step.device)
    block_tables.view(-1)[places] = blocks
