"""A model that does not fit says what it needs, what there is, and which flag would help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.sizes import weight_bytes
from headrace.engine.limits import GIB, BatchLimits
from headrace.hardware.memory import available_bytes
from headrace.link.errors import ConfigurationError


def check_weights_fit(checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
    """Refuse a model whose weights alone exceed a GPU's free memory, before they are read.

    On a CPU nothing is refused: weights may stay packed or mapped there.

    Raises:
        ConfigurationError: Says what is needed and what there is.
    """
    if device.type == "cpu":
        return
    needed, free = weight_bytes(checkpoint.config, dtype), available_bytes(device)
    if needed > free:
        raise ConfigurationError(
            f"the model's weights need {needed / GIB:.2f} GiB in {dtype}, {free / GIB:.2f} GiB are "
            f"free on {device}: free memory there, take a smaller --model-id, or --device cpu"
        )


@contextmanager
def explain_out_of_memory(batch: BatchLimits) -> Iterator[None]:
    """Turn an out-of-memory during warmup into advice; nothing is lowered in silence.

    Raises:
        ConfigurationError: Names the limits that the largest step follows from.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        raise ConfigurationError(
            f"out of memory during warmup ({reason}): lower --max-batch-prefill-tokens "
            f"({batch.token_budget}) or --max-batch-size ({batch.max_batch_size}), the sizes of "
            "the largest step, or --kv-cache-bytes"
        ) from error
