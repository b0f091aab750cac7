"""For every test: OpenMP threads that sleep, since several test processes share the cores, clients
that share one TLS context, and the order in which tests are handed out."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import httpx
import pytest

_TESTS = Path(__file__).parent

# Read when torch is loaded, in this process and in those that tests start. A thread that spins at
# a barrier takes the core from the one that it waits for.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# By folder or file, what takes minutes: begun first, so that no process ends on it alone.
_LONGEST = (
    "finetuning/test_placements.py",
    "end_to_end/test_agreement.py",
    "end_to_end/test_finetuned.py",
    "kernels/triton/test_triton_compiles.py",
    "modeling/test_loading.py",
    "kernels/native/test_native_sanitized.py",
    "engine/test_memory_forecast.py",
    "end_to_end/test_perplexity.py",
    "kernels/triton",
    "cli/test_serve_and_chat.py",
    "finetuning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(_TESTS).as_posix()
        return next((i for i, part in enumerate(_LONGEST) if path.startswith(part)), len(_LONGEST))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def _one_tls_context() -> Iterator[None]:
    """No test speaks TLS, and each client would read all authorities, for 0.1 s of CPU time."""
    remembered = functools.cache(httpx.create_ssl_context)
    with mock.patch("httpx._transports.default.create_ssl_context", remembered):
        yield
