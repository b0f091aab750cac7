"""Time kernels of a model's shape and set them against their floors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from headrace.benchmark.kernels.ceilings import Ceilings
from headrace.benchmark.kernels.workbench import Workbench
from headrace.benchmark.record import Row, median_row
from headrace.checkpoint.config import ModelConfig
from headrace.kernels.activation.cases import activation_case
from headrace.kernels.attention.cases import attention_case
from headrace.kernels.case import KernelCase
from headrace.kernels.embedding.cases import embedding_case
from headrace.kernels.linear.cases import linear_cases
from headrace.kernels.norm.cases import norm_case
from headrace.kernels.rotary.cases import rotary_case


def gemm_cases(config: ModelConfig, tokens: Sequence[int], item_bytes: int) -> list[KernelCase]:
    """Every linear of the model at every number of tokens."""
    return [
        case for count in tokens for case in linear_cases(config, count, item_bytes, item_bytes)
    ]


def attention_cases(
    config: ModelConfig,
    batches: Sequence[int],
    contexts: Sequence[int],
    prefills: Sequence[int],
    item_bytes: int,
) -> list[KernelCase]:
    """Decode steps of every batch and context, then whole prompts."""
    decode = [attention_case(config, b, 1, c, item_bytes) for c in contexts for b in batches]
    return decode + [attention_case(config, 1, p, p, item_bytes) for p in prefills]


def row_cases(
    config: ModelConfig, tokens: Sequence[int], item_bytes: int, residual_bytes: int
) -> list[KernelCase]:
    """What works row by row: norm, activation, rotation, embedding."""
    return [
        case
        for count in tokens
        for case in (
            embedding_case(config, count, item_bytes, residual_bytes),
            norm_case(config, count, item_bytes, residual_bytes),
            rotary_case(config, count, item_bytes),
            activation_case(config, count, item_bytes),
        )
    ]


def measure_kernels(
    bench: Workbench,
    cases: Sequence[KernelCase],
    ceilings: Ceilings,
    runs: int,
    advance: Callable[[str], None],
) -> Iterator[Row]:
    """Two rows a case: ``kernel_us`` with every sample, and ``floor_us``."""
    for kernel in dict.fromkeys(case.kernel for case in cases):
        run = bench.runner(kernel)
        for case in cases:
            if case.kernel != kernel:
                continue
            samples = [1e6 * seconds for seconds in run(case, runs)]
            floor = 1e6 * case.floor_seconds(*ceilings)
            facts = {
                "batch": case.sequences,
                "context": case.context if kernel == "attention" else None,
                "conditions": {"kernel": kernel, "tokens": case.tokens},
            }
            yield median_row("kernel_us", samples, "us", **facts)
            yield median_row("floor_us", [floor], "us", **facts)
            advance(kernel)
