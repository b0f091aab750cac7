"""What the GPU backend refuses, and how it is chosen; no GPU is needed to be refused."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from headrace.kernels.triton_launch import GpuTraits
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import choose_backend
from headrace.modeling.backends.triton_operations import TritonOperations
from headrace.modeling.operations import AttentionShape

TRAITS = GpuTraits(132, 232448, True, True)
CPU = torch.device("cpu")


def shape(num_heads: int, num_kv_heads: int, head_dim: int) -> AttentionShape:
    return AttentionShape(num_heads, num_kv_heads, head_dim, head_dim**-0.5, None)


@pytest.fixture
def operations() -> TritonOperations:
    return TritonOperations(CPU, torch.bfloat16, None, TRAITS)


def test_unsupported_head_size_is_refused_with_what_is_supported(
    operations: TritonOperations,
) -> None:
    with pytest.raises(ConfigurationError, match=r"head size 80 .* supported: 64, 96, 128, 256"):
        operations.allocate_caches([shape(8, 8, 80)], 4, 16)


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 4), (128, 1)])
def test_groups_of_heads_must_be_whole_and_fit_a_tile(
    operations: TritonOperations, heads: int, kv_heads: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"{heads} heads over {kv_heads}"):
        operations.allocate_caches([shape(heads, kv_heads, 64)], 4, 16)


def test_float32_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="bfloat16 or float16"):
        TritonOperations(CPU, torch.float32, None, TRAITS)


def test_cache_takes_the_bytes_it_says(operations: TritonOperations) -> None:
    layer = shape(8, 2, 64)
    (cache,) = operations.allocate_caches([layer], 5, 16)
    assert cache.keys.shape == (5, 16, 2, 64)
    held = cache.keys.untyped_storage().nbytes() + cache.values.untyped_storage().nbytes()
    assert held == 5 * operations.cache_bytes_per_block(layer, 16)


def test_lone_matrix_is_shared_with_the_embedding(operations: TritonOperations) -> None:
    table = torch.randn(32, 16).to(torch.bfloat16)
    assert operations.pack_linear([table], None).weight.data_ptr() == table.data_ptr()
    assert operations.pack_embedding(table).weight.data_ptr() == table.data_ptr()


def test_triton_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        choose_backend("triton", "cpu")
