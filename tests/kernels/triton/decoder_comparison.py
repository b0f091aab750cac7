"""A whole decoder over the Triton operations against plain torch in float32, one step at a time."""

from __future__ import annotations

import msgspec
import torch

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.low_rank.stack import LowRankStack, LowRankUpdate
from headrace.kernels.triton_launch import GpuTraits
from headrace.modeling.activations import Activations
from headrace.modeling.adapters.adapter_set import LayerUpdates
from headrace.modeling.backends.captured_graphs import step_views
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.backends.triton_operations import TritonOperations
from headrace.modeling.loading.load import build_decoder
from headrace.modeling.loading.random_weights import RandomReader
from headrace.modeling.operations import Operations
from headrace.modeling.step import StepInputs

CONFIG = ModelConfig(
    family="qwen3", hidden_size=520, intermediate_size=80, num_layers=2, num_heads=3,
    num_kv_heads=1, head_dim=64, vocab_size=101, max_position=64, rms_norm_eps=1e-5,
    rope_theta=1e4, qk_norm=True, attention_bias=True, sliding_window=11, sliding_layers=(1,),
)  # fmt: skip
PLAIN = msgspec.structs.replace(CONFIG, qk_norm=False)
"""Without head norms."""

BLOCK_SIZE, BLOCKS = 4, [5, 2, 7, 0, 3, 6]


class SharedReader:
    """The same random weights for both sides, in whatever dtype each asks for."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.config = config
        self._reader = RandomReader(config, 3, torch.device("cpu"), torch.float32)
        self._dtype = dtype
        self._seen: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> torch.Tensor:
        if name not in self._seen:
            values = self._reader.read(name) * (1 if name.endswith("norm.weight") else 2)
            self._seen[name] = values.to(self._dtype)
        return self._seen[name]

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self.read(name).to(dtype)


def logits_of_steps(
    operations: Operations,
    reader: SharedReader,
    tokens: list[int],
    updates: list[LayerUpdates] | None,
) -> torch.Tensor:
    """Logits [steps, vocab] of a prompt in two chunks, then one token at a time."""
    decoder = build_decoder(reader.config, reader, operations)
    caches = operations.allocate_caches(
        [layer.attention for layer in decoder.layers], 8, BLOCK_SIZE
    )
    buffers = Activations.allocate(CONFIG, operations, len(tokens), 1)
    rows, computed = [], 0
    while computed < len(tokens):
        count = min(9, 18 - computed) if computed < 18 else 1
        positions = torch.arange(computed, computed + count, dtype=torch.int32)
        blocks = torch.tensor(BLOCKS, dtype=torch.int32)
        whole = StepInputs(
            token_ids=torch.tensor(tokens[computed : computed + count], dtype=torch.int32),
            positions=positions,
            cache_slots=blocks[positions.long() // BLOCK_SIZE] * BLOCK_SIZE
            + positions % BLOCK_SIZE,
            query_start=torch.tensor([0, count], dtype=torch.int32),
            context_lengths=torch.tensor([computed + count], dtype=torch.int32),
            rows=torch.zeros(1, dtype=torch.int32),
            block_tables=blocks[None],
            sampled_tokens=torch.tensor([count - 1], dtype=torch.int32),
            max_query_length=count,
            max_context_length=computed + count,
            adapter_of_token=torch.zeros(count, dtype=torch.int32),
        )
        computed += count
        step = step_views(whole, count, 1, 1, count, computed, False)
        view = buffers.view(count, 1)
        decoder.body(step, view, caches, updates)
        decoder.compute_logits(view)
        rows.append(view.logits[0].clone())
    return torch.stack(rows)


def random_updates(operations: Operations) -> list[LayerUpdates]:
    """One adapter on every linear but the attention's output; the same numbers at every call."""
    generator = torch.Generator().manual_seed(7)

    def stack(widths: tuple[int, ...], columns: int) -> LowRankStack:
        def factor(rows: int, width: int) -> torch.Tensor:
            return torch.randn(rows, width, generator=generator).half()

        updates = [LowRankUpdate(factor(3, columns), factor(w, 3), 0.02) for w in widths]
        return LowRankStack.build(
            [updates], widths, columns, operations.activation_dtype, operations.device
        )

    hidden, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    return [
        LayerUpdates(
            qkv=stack((CONFIG.q_size, CONFIG.kv_size, CONFIG.kv_size), hidden),
            gate_up=stack((inner, inner), hidden),
            down=stack((hidden,), inner),
        )
        for _ in range(CONFIG.num_layers)
    ]


def decoder_error(traits: GpuTraits, adapted: bool, config: ModelConfig = CONFIG) -> float:
    """Relative error of float16 logits over all steps, with an adapter (then unfused) or none."""
    device, dtype = torch.device("cpu"), torch.float16
    reader = SharedReader(config, dtype)
    operations = TritonOperations(device, dtype, None, traits)
    operations.tuner.freeze()
    tokens = torch.randint(0, CONFIG.vocab_size, (22,)).tolist()
    reference = TorchBackend(device, torch.float32).operations
    logits, expected = (
        logits_of_steps(ops, reader, tokens, random_updates(ops) if adapted else None)
        for ops in (operations, reference)
    )
    return float((logits - expected).norm() / expected.norm())
