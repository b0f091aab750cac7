"""What eager attention needs to know of one step: indices and masks, made once for all layers.

Pages are laid out [blocks, 2 * kv_heads, block_size, head_dim] (keys, then values), so that one
lookup of (block, head) rows gives keys and values as dense [kv_heads, context, head_dim] matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from headrace.modeling.operations import AttentionShape
from headrace.modeling.step import StepInputs

_Array = npt.NDArray[np.int64]

_MAX_GATHERED_TOKENS = 1 << 16
"""Context tokens of one group of decoding sequences: bounds the memory of their gathered pages."""
_MIN_FILL = 0.75
"""Shortest context of a group, as a fraction of its longest: bounds the work on padding."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences of similar length with one new token each.

    Attributes:
        tokens: [S] int64 index among the step's tokens, or ``None``: all of them, in order.
        page_index: [2, S, kv_heads, blocks] rows of the (block, head) view of the pages.
        mask: [S, 1, 1, context] float32 to add to scores, or ``None``: nothing is hidden.
    """

    tokens: torch.Tensor | None
    page_index: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """One sequence with several new tokens.

    Attributes:
        first: Index of its first token.
        last: Index past its last.
        context: Context length, new tokens included.
        page_index: [2, 1, kv_heads, blocks] as above, or ``None``: the new tokens are the context.
        mask: [queries, context] bool, true where visible; ``None``: plain causal.
    """

    first: int
    last: int
    context: int
    page_index: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """How the attention of one kind of layer is computed in this step."""

    decode: list[DecodeGroup]
    prefill: list[PrefillSequence]


class StepPlan:
    """Lazily derived from one ``StepInputs`` whose contents do not change meanwhile."""

    def __init__(self, step: StepInputs) -> None:
        self._step = step
        self._device = step.token_ids.device
        self._attention: dict[tuple[int, int, int | None], AttentionPlan] = {}
        self._cache_rows: dict[tuple[int, int], torch.Tensor] = {}
        self._rotation: tuple[torch.Tensor, torch.Tensor] | None = None

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """[T] int64."""
        return self._step.token_ids.long()

    @cached_property
    def sampled_tokens(self) -> torch.Tensor:
        """[R] int64."""
        return self._step.sampled_tokens.long()

    def rotation(self, cos_sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines [T, 1, head_dim] such that x cos + swap(x) sin rotates x.

        ``swap`` exchanges the halves of a head; the sines of the first half are negated.
        """
        if self._rotation is None:
            cos, sin = cos_sin[self._step.positions.long()][:, None].chunk(2, dim=-1)
            self._rotation = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return self._rotation

    def cache_rows(self, heads: int, block_size: int) -> torch.Tensor:
        """[T * heads] row of the pages' [.., head_dim] view for each token's key or value head."""
        key = (heads, block_size)
        if key not in self._cache_rows:
            slots = self._step.cache_slots.long()
            blocks, offsets = slots // block_size, slots % block_size
            head = torch.arange(heads, device=self._device)
            rows = (blocks[:, None] * heads + head) * block_size + offsets[:, None]
            self._cache_rows[key] = rows.flatten()
        return self._cache_rows[key]

    def attention(self, shape: AttentionShape, block_size: int) -> AttentionPlan:
        """The plan for layers of this shape."""
        key = (shape.num_kv_heads, block_size, shape.sliding_window)
        plan = self._attention.get(key)
        if plan is None:
            plan = self._plan(*key)
            self._attention[key] = plan
        return plan

    @cached_property
    def _host(self) -> tuple[_Array, _Array, _Array]:
        step = self._step
        return (
            step.query_start.cpu().numpy().astype(np.int64),
            step.context_lengths.cpu().numpy().astype(np.int64),
            step.block_tables[step.rows.long()].cpu().numpy().astype(np.int64),
        )

    def _plan(self, kv_heads: int, block_size: int, window: int | None) -> AttentionPlan:
        starts, contexts, tables = self._host
        counts = np.diff(starts)
        singles = np.flatnonzero(counts == 1)
        decode = [
            self._decode_group(group, kv_heads, block_size, window)
            for group in _groups_of_similar_length(singles, contexts)
        ]
        prefill = []
        for sequence in np.flatnonzero(counts > 1).tolist():
            first, last = int(starts[sequence]), int(starts[sequence + 1])
            context = int(contexts[sequence])
            page_index, mask = None, None
            if last - first < context:
                blocks = -(-context // block_size)
                page_index = self._page_index(tables[sequence : sequence + 1, :blocks], kv_heads)
            if page_index is not None or (window is not None and window < context):
                mask = self._causal_mask(last - first, context, window)
            prefill.append(PrefillSequence(first, last, context, page_index, mask))
        return AttentionPlan(decode, prefill)

    def _decode_group(
        self, group: _Array, kv_heads: int, block_size: int, window: int | None
    ) -> DecodeGroup:
        starts, all_contexts, tables = self._host
        contexts = all_contexts[group]
        visible_from = np.zeros_like(contexts)
        if window is not None:
            visible_from = np.maximum(contexts - window, 0)
        first_block = visible_from // block_size
        last_block = (contexts - 1) // block_size
        width = int((last_block - first_block).max()) + 1
        # Past its own blocks a sequence repeats its last: padding never shows it another's data.
        columns = np.minimum(first_block[:, None] + np.arange(width), last_block[:, None])
        page_index = self._page_index(np.take_along_axis(tables[group], columns, axis=1), kv_heads)
        positions = first_block[:, None] * block_size + np.arange(width * block_size)
        hidden = (positions >= contexts[:, None]) | (positions < visible_from[:, None])
        mask = None
        if hidden.any():
            values = np.where(hidden, -np.inf, 0.0).astype(np.float32)
            mask = torch.from_numpy(values[:, None, None]).to(self._device)
        tokens = None
        if len(group) < len(self._step.token_ids) or (np.diff(group) < 0).any():
            tokens = torch.from_numpy(starts[group]).to(self._device)
        return DecodeGroup(tokens, page_index, mask)

    def _page_index(self, tables: _Array, kv_heads: int) -> torch.Tensor:
        head = np.arange(2 * kv_heads).reshape(2, 1, kv_heads, 1)
        return torch.from_numpy(tables[None, :, None] * (2 * kv_heads) + head).to(self._device)

    def _causal_mask(self, queries: int, context: int, window: int | None) -> torch.Tensor:
        key = torch.arange(context, device=self._device)
        query = torch.arange(context - queries, context, device=self._device)[:, None]
        visible = key <= query
        if window is not None:
            visible &= key > query - window
        return visible


def _groups_of_similar_length(singles: _Array, contexts: _Array) -> list[_Array]:
    """Split sequences into groups without much padding; kept in order where one group holds all."""
    if not len(singles):
        return []
    lengths = contexts[singles]
    longest, shortest = int(lengths.max()), int(lengths.min())
    if shortest >= _MIN_FILL * longest and longest * len(singles) <= _MAX_GATHERED_TOKENS:
        return [singles]
    groups: list[list[int]] = []
    group_longest = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if (
            not groups
            or length < _MIN_FILL * group_longest
            or group_longest * (len(groups[-1]) + 1) > _MAX_GATHERED_TOKENS
        ):
            groups.append([])
            group_longest = length
        groups[-1].append(int(singles[index]))
    return [np.array(group, dtype=np.int64) for group in groups]
