"""The binding of cuBLASLt as far as a machine without a GPU can hold it: layouts and refusals."""

from __future__ import annotations

import ctypes

import torch

from headrace.kernels.linear import cublaslt


def test_a_heuristic_result_has_the_size_that_the_header_gives_it() -> None:
    """64 bytes of algorithm, its workspace, a status, its waves and four reserved words."""
    assert ctypes.sizeof(cublaslt._Heuristic) == 64 + 8 + 4 + 4 + 16


def test_there_is_no_such_library_for_a_cpu() -> None:
    assert cublaslt.loaded(torch.device("cpu")) is None
