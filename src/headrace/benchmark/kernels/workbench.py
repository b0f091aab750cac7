"""A model's layers with buffers and pages, on which each of its operations can be run alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from headrace.benchmark.kernels.ceilings import synchronize
from headrace.checkpoint.config import ModelConfig
from headrace.kernels.case import KernelCase
from headrace.modeling.activations import Activations
from headrace.modeling.backends.backend import CapturesGraphs, Computation
from headrace.modeling.backends.choose import BackendChoice
from headrace.modeling.decoder import Decoder
from headrace.modeling.loading.load import random_decoder
from headrace.modeling.operations import LayerCache
from headrace.modeling.step import StepInputs

BLOCK_SIZE = 16
_COLD_BYTES = 256 << 20
"""Read before every run, so that no weight is in a cache: more than any cache holds."""

_MOST_LAYERS = 32


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
    caches: list[LayerCache]

    @classmethod
    def build(
        cls, choice: BackendChoice, config: ModelConfig, tokens: int, rows: int, length: int
    ) -> Workbench:
        """Layers of random weights, buffers for ``tokens``, pages for ``rows`` × ``length``."""
        config = msgspec.structs.replace(config, num_layers=min(config.num_layers, _MOST_LAYERS))
        operations = choice.backend.operations
        decoder = random_decoder(config, 0, operations, length)
        pages = -(-length // BLOCK_SIZE)

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
        buffers = Activations.allocate(config, operations, tokens, tokens)
        for buffer in (buffers.normed, buffers.qkv, buffers.attended, buffers.gate_up):
            buffer.normal_()
        caches = [
            operations.allocate_cache(layer.attention, rows * pages, BLOCK_SIZE)
            for layer in decoder.layers
        ]
        return cls(choice, config, decoder, step, buffers, caches)

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

    def runner(self, kernel: str) -> Callable[[KernelCase, int], list[float]]:
        """Compiles the kernel's chain once; times cases: seconds of one kernel, a value a run."""
        computation, count = self.computation(kernel)
        device = self.choice.device
        program = self.choice.backend.compile(computation, self.step, self.buffers)
        if isinstance(program, CapturesGraphs):
            program.capture()

        cold = torch.ones(_COLD_BYTES // 4, dtype=torch.float32, device=device)

        def run(case: KernelCase, runs: int) -> list[float]:
            self.fill(case)
            new = case.tokens // case.sequences
            size = (case.tokens, case.sequences, case.tokens, new, case.context)
            times = []
            for _ in range(runs + 2):
                cold.sum()
                synchronize(device)
                started = time.perf_counter()
                program.run(*size)
                synchronize(device)
                times.append((time.perf_counter() - started) / count)
            return times[2:]

        return run
