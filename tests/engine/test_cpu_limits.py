"""A CPU's start computes no largest step: one that cannot be held is refused by arithmetic."""

from __future__ import annotations

import pytest

from headrace import LLM
from headrace.link.errors import ConfigurationError


def test_a_step_larger_than_memory_is_refused_by_the_limits_it_follows_from() -> None:
    with pytest.raises(ConfigurationError, match=r"--max-batch-prefill-tokens \(1000000000\)"):
        LLM(device="cpu", max_batch_prefill_tokens=1_000_000_000)
