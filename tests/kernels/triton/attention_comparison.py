"""Paged attention against its reference: decode, prompts, chunks and mixes of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from workbench import Case, Workbench, relative_error

from headrace.kernels.attention import reference as attention_reference
from headrace.kernels.attention import triton as attention


class AttentionComparisons(Workbench):
    """Every launch of the attention kernels."""

    def attention(
        self,
        new_and_context: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        head_dim: int,
        window: int | None,
        block_size: int = 16,
    ) -> float:
        """Sequences of (new tokens, context); one with context 0 is a captured graph's padding."""
        real = [pair for pair in new_and_context if pair[1] > 0]
        tokens = sum(new for new, _ in real)
        longest = max(context for _, context in real)
        blocks_each = -(-longest // block_size)
        count = len(new_and_context)
        keys, values = self.caches(count * blocks_each + 1, block_size, kv_heads, head_dim)
        keys[-1], values[-1] = float("nan"), float("nan")
        tables = torch.full((count + 1, blocks_each + 1), count * blocks_each, dtype=torch.int32)
        order = torch.randperm(count * blocks_each).view(count, blocks_each)
        rows = torch.randperm(count + 1)[:count]
        for index, (_, context) in enumerate(new_and_context):
            used = -(-context // block_size)
            tables[rows[index], :used] = order[index, :used]
        starts = [0]
        for new, context in new_and_context:
            starts.append(starts[-1] + (new if context else 0))
        qkv = self.random(tokens, (heads + 2 * kv_heads) * head_dim)
        out = self.poisoned(tokens, heads * head_dim)
        expected = torch.full_like(out, float("nan"), dtype=torch.float32)
        # The keys and values of new tokens, as rotate_and_cache leaves them in both places.
        for index, (new, context) in enumerate(new_and_context):
            for number in range(new if context else 0):
                block, offset = divmod(context - new + number, block_size)
                page = int(order[index, block])
                whole = qkv[starts[index] + number].view(-1, head_dim)
                whole[heads : heads + kv_heads] = keys[page, offset]
                whole[heads + kv_heads :] = values[page, offset]
        contexts = self.integers([context for _, context in new_and_context])
        tables = tables.to(self.device)
        device_rows = rows.to(torch.int32).to(self.device)
        workspace = attention.AttentionWorkspace(self.device)
        errors = []
        for _ in range(2):
            out.fill_(float("nan"))
            attention.paged_attention(
                qkv, heads, kv_heads, head_dim**-0.5, window, keys, values, self.integers(starts),
                contexts, device_rows, tables, out, max(new for new, _ in real), longest,
                workspace, self.traits,
            )  # fmt: skip
            if count == len(real):
                attention_reference.paged_attention(
                    qkv, heads, kv_heads, head_dim**-0.5, window, keys, values,
                    self.integers(starts), contexts, device_rows, tables, expected,
                )  # fmt: skip
            else:
                kept = [index for index, pair in enumerate(new_and_context) if pair[1] > 0]
                attention_reference.paged_attention(
                    qkv, heads, kv_heads, head_dim**-0.5, window, keys, values,
                    self.integers([starts[index] for index in kept] + [tokens]),
                    contexts[kept], device_rows[kept], tables, expected,
                )  # fmt: skip
            errors.append(relative_error(out, expected))
        if workspace.tickets.any():
            return float("inf")
        return max(errors)

    def interpreted_cases(self) -> Iterator[Case]:
        """Tiny shapes."""
        for label, sequences, heads, kv_heads, head_dim, window in (
            ("decode", [(1, 37), (1, 0), (1, 200)], 4, 2, 64, None),
            ("decode window", [(1, 37), (1, 90)], 3, 1, 64, 21),
            ("decode split 96", [(1, 300)], 2, 1, 96, None),
            ("decode heads together", [(1, 37), (1, 0), (1, 200)], 8, 4, 64, None),
            ("decode heads window 96", [(1, 70), (1, 9)], 6, 2, 96, 21),
            ("prefill", [(19, 19)], 3, 1, 64, None),
            ("chunked window", [(9, 50)], 2, 1, 64, 13),
            ("mixed", [(1, 41), (17, 30), (1, 0)], 2, 1, 64, None),
        ):
            yield (
                f"attention {label} {self.name}",
                partial(self.attention, sequences, heads, kv_heads, head_dim, window),
            )

    def gpu_cases(self) -> Iterator[Case]:
        """Real and odd shapes."""
        for head_dim in attention.HEAD_SIZES:
            groupings = ((32, 8), (9, 3), (28, 4), (8, 8)) if head_dim == 128 else ((32, 8), (9, 3))
            for heads, kv_heads in groupings:
                for label, sequences, window in (
                    ("decode", [(1, 1), (1, 130), (1, 0), (1, 2111)], None),
                    ("decode window", [(1, 777), (1, 90)], 256),
                    ("prefill", [(513, 513)], None),
                    ("chunked", [(100, 777), (257, 257), (64, 3000)], None),
                    ("chunked window", [(100, 777), (257, 257)], 128),
                    ("mixed", [(1, 410), (300, 812), (1, 0), (1, 1024)], None),
                    ("decode many", [(1, 7 + 5 * index) for index in range(80)], None),
                    ("decode many window", [(1, 7 + 5 * index) for index in range(150)], 100),
                ):
                    yield (
                        f"attention {label} {heads}/{kv_heads} {head_dim} {self.name}",
                        partial(self.attention, sequences, heads, kv_heads, head_dim, window),
                    )
