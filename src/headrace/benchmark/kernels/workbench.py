"""A model's layers with buffers and pages, on which each of its operations can be run alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch

from headrace.benchmark.kernels.timing import ColdTimer
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.sizes import kv_bytes_per_token, weight_bytes
from headrace.hardware.memory import available_bytes
from headrace.kernels.case import KernelCase
from headrace.link.errors import ConfigurationError
from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import CapturesGraphs, Computation
from headrace.modeling.backends.choose import BackendChoice
from headrace.modeling.decoder import Decoder
from headrace.modeling.loading.load import random_decoder
from headrace.modeling.operations import LayerCache
from headrace.modeling.step import StepInputs

BLOCK_SIZE = 16
_MOST_LAYERS = 32
_FILLED_AT_ONCE = 256
"""Tokens whose keys and values are written to the pages in one run, at least."""


def check_fits(choice: BackendChoice, config: ModelConfig, rows: int, length: int) -> None:
    """Refuse what no ``Workbench`` could hold, before anything is measured or drawn.

    Raises:
        ConfigurationError: the pages do not fit the device beside the weights.
    """
    config = _of_most_layers(config)
    needed = rows * _pages(length) * BLOCK_SIZE * kv_bytes_per_token(config, choice.dtype_name)
    left = max(0, available_bytes(choice.device) - weight_bytes(config, choice.dtype_name))
    if needed > left:
        raise ConfigurationError(
            f"{rows} sequences of {length} tokens need {needed / 2**30:.2f} GiB of KV cache, "
            f"{left / 2**30:.2f} GiB are left: ask for fewer or shorter ones"
        )


def _of_most_layers(config: ModelConfig) -> ModelConfig:
    return msgspec.structs.replace(config, num_layers=min(config.num_layers, _MOST_LAYERS))


def _pages(length: int) -> int:
    return -(-length // BLOCK_SIZE)


@dataclass(frozen=True)
class Workbench:
    """Every operation of a decoder, once a layer in a chain whose weights are cold.

    Attributes:
        config: With 32 layers at most.
    """

    choice: BackendChoice
    config: ModelConfig
    decoder: Decoder
    step: StepInputs
    buffers: Activations
    caches: Sequence[LayerCache]

    @classmethod
    def build(
        cls, choice: BackendChoice, config: ModelConfig, tokens: int, rows: int, length: int
    ) -> Workbench:
        """Layers of random weights, buffers for ``tokens``, pages for ``rows`` × ``length``."""
        config = _of_most_layers(config)
        operations = choice.backend.operations
        decoder = random_decoder(config, 0, operations, length)
        logit_rows, tokens = tokens, max(tokens, _FILLED_AT_ONCE)
        pages = _pages(length)

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=choice.device)

        # Pages of a sequence lie apart, as they do in a server that has run for a while.
        order = torch.randperm(rows * pages, generator=torch.Generator().manual_seed(0))
        step = StepInputs(
            token_ids=ints(tokens),
            positions=ints(tokens),
            cache_slots=ints(tokens),
            query_start=ints(rows + 1),
            context_lengths=ints(rows),
            rows=torch.arange(rows, dtype=torch.int32, device=choice.device),
            block_tables=order.view(rows, pages).int().to(choice.device).contiguous(),
            sampled_tokens=ints(tokens),
            max_query_length=tokens,
            max_context_length=length,
        )
        buffers = Activations.allocate(config, operations, tokens, logit_rows)
        # Zeros are multiplied faster: they take less power.
        for name in ("residual", "normed", "qkv", "attended", "delta", "gate_up", "activated"):
            getattr(buffers, name).normal_()
        buffers.final.normal_()
        caches = operations.allocate_caches(
            [layer.attention for layer in decoder.layers], rows * pages, BLOCK_SIZE
        )
        bench = cls(choice, config, decoder, step, buffers, caches)
        bench._fill_pages(rows * pages * BLOCK_SIZE)
        return bench

    def computation(self, kernel: str) -> tuple[Computation, int]:
        """The kernel once a layer, and how often that is; the head and the embedding are lone."""
        operations, decoder, caches = self.choice.backend.operations, self.decoder, self.caches
        layers, eps = decoder.layers, decoder.norm_eps

        def each(s: StepInputs, a: Activations) -> None:
            for layer, cache in zip(layers, caches, strict=True):
                match kernel:
                    case "qkv":
                        operations.linear(a.normed, layer.qkv, a.qkv)
                    case "output":
                        operations.linear(a.attended, layer.output, a.delta)
                    case "gate_up_silu":
                        operations.gated_linear(a.normed, layer.gate_up, a.gate_up, a.activated)
                    case "down":
                        operations.linear(a.activated, layer.down, a.delta)
                    case "attention":
                        operations.attention(a.qkv, layer.attention, cache, s, a.attended)
                    case "rotary_and_cache":
                        operations.rotate_and_cache(
                            a.qkv, decoder.cos_sin, None, layer.attention, cache, s
                        )
                    case "add_rms_norm":
                        operations.add_rms_norm(
                            a.delta, a.residual, layer.input_norm, eps, a.normed
                        )
                    case "silu_mul":
                        operations.silu_mul(a.gate_up, a.activated)

        def head(s: StepInputs, a: Activations) -> None:
            operations.linear(a.final, decoder.head, a.logits)

        def embed(s: StepInputs, a: Activations) -> None:
            operations.embed(s.token_ids, decoder.embedding, a.residual)

        alone: dict[str, Computation] = {"head": head, "embed": embed}
        if kernel in alone:
            return alone[kernel], 1
        return each, len(layers)

    def fill(self, case: KernelCase) -> None:
        """Inputs of a step of this case's size."""
        new, device = case.tokens // case.sequences, self.choice.device
        row = torch.arange(case.sequences, device=device).repeat_interleave(new)
        position = torch.arange(case.context - new, case.context, device=device)
        position = position.repeat(case.sequences)
        step = self.step
        step.token_ids[: case.tokens] = torch.arange(case.tokens, device=device) * 97 % 30000
        step.positions[: case.tokens] = position
        page = step.block_tables[row, position // BLOCK_SIZE]
        step.cache_slots[: case.tokens] = page * BLOCK_SIZE + position % BLOCK_SIZE
        step.query_start[: case.sequences + 1] = (
            torch.arange(case.sequences + 1, device=device) * new
        )
        step.context_lengths[: case.sequences] = case.context
        step.sampled_tokens[: case.tokens] = torch.arange(case.tokens, device=device)

    def _fill_pages(self, slots: int) -> None:
        """Random keys and values in every slot of every cache."""
        computation, _ = self.computation("rotary_and_cache")
        program = self.choice.backend.compile(computation, self.step, self.buffers)
        step, most = self.step, self.step.token_ids.shape[0]
        for first in range(0, slots, most):
            count = min(most, slots - first)
            chosen = torch.arange(first, first + count, device=self.choice.device)
            step.cache_slots[:count] = chosen
            step.positions[:count] = chosen % step.max_context_length
            step.query_start[1] = step.context_lengths[0] = count
            program.run(count, 1, 1, count, count)

    def runner(self, kernel: str) -> Callable[[KernelCase, int], list[float]]:
        """Compiles the kernel's chain once; times cases: seconds of one kernel, a value a run."""
        computation, count = self.computation(kernel)
        program = self.choice.backend.compile(computation, self.step, self.buffers)
        timer = ColdTimer(self.choice.device, capture=isinstance(program, CapturesGraphs))

        def run(case: KernelCase, runs: int) -> list[float]:
            self.fill(case)
            new = case.tokens // case.sequences
            size = (case.tokens, case.sequences, case.tokens, new, case.context)
            return [chain / count for chain in timer.seconds(lambda: program.run(*size), runs)]

        return run
