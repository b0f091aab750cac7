"""The buffers between a decoder's operations, allocated once at capacity."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from headrace.checkpoint.config import ModelConfig
from headrace.modeling.operations import Operations


@dataclass(frozen=True, slots=True)
class Activations:
    """What the operations of a forward write, in the activation dtype unless said otherwise.

    Attributes:
        residual: [T, hidden] residual stream, in the residual dtype.
        normed: [T, hidden] input of the projections.
        qkv: [T, (heads + 2 * kv_heads) * head_dim].
        attended: [T, heads * head_dim].
        delta: [T, hidden] what a block adds to the residual stream.
        gate_up: [T, 2 * intermediate].
        activated: [T, intermediate].
        sampled_residual: [R, hidden] residual stream of the sampled tokens; where its dtype is that
            of activations the memory of ``final``, whose norm overwrites it row by row.
        final: [R, hidden] normalised hidden state of the sampled tokens; as many rows as T, since
            prompt log-probabilities want every token.
        logits: [R, vocab] float32, of as many rows as the head computes at once.
    """

    residual: torch.Tensor
    normed: torch.Tensor
    qkv: torch.Tensor
    attended: torch.Tensor
    delta: torch.Tensor
    gate_up: torch.Tensor
    activated: torch.Tensor
    sampled_residual: torch.Tensor
    final: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def allocate(
        cls, config: ModelConfig, operations: Operations, max_tokens: int, max_logit_rows: int
    ) -> Activations:
        """Zeroed buffers for steps of up to ``max_tokens`` tokens."""

        def rows(width: int, dtype: torch.dtype = operations.activation_dtype) -> torch.Tensor:
            return torch.zeros(max_tokens, width, dtype=dtype, device=operations.device)

        final = rows(config.hidden_size)
        wide_residual = operations.residual_dtype != operations.activation_dtype
        return cls(
            residual=rows(config.hidden_size, operations.residual_dtype),
            normed=rows(config.hidden_size),
            qkv=rows(config.q_size + 2 * config.kv_size),
            attended=rows(config.q_size),
            delta=rows(config.hidden_size),
            gate_up=rows(2 * config.intermediate_size),
            activated=rows(config.intermediate_size),
            sampled_residual=(
                rows(config.hidden_size, operations.residual_dtype) if wide_residual else final
            ),
            final=final,
            logits=torch.zeros(
                max_logit_rows, config.vocab_size, dtype=torch.float32, device=operations.device
            ),
        )

    def view(self, num_tokens: int, num_sampled: int) -> Activations:
        """The first ``num_tokens`` and ``num_sampled`` rows; shares memory."""
        return Activations(
            residual=self.residual[:num_tokens],
            normed=self.normed[:num_tokens],
            qkv=self.qkv[:num_tokens],
            attended=self.attended[:num_tokens],
            delta=self.delta[:num_tokens],
            gate_up=self.gate_up[:num_tokens],
            activated=self.activated[:num_tokens],
            sampled_residual=self.sampled_residual[:num_sampled],
            final=self.final[:num_sampled],
            logits=self.logits[:num_sampled],
        )

    @property
    def num_bytes(self) -> int:
        """Bytes held by all buffers together."""
        buffers = [getattr(self, field.name) for field in fields(self)]
        return sum({id(buffer): buffer.nbytes for buffer in buffers}.values())
