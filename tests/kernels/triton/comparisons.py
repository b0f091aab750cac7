"""Each Triton kernel against its float32 reference, as a script that prints one JSON line a case.

Run with TRITON_INTERPRET=1 on a CPU (tiny shapes, no bfloat16: the interpreter's bfloat16 dot is
wrong), or with a GPU (larger and odd shapes, both half precisions). Inputs are fresh random
numbers, outputs are poisoned first, and only what the reference writes may change.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import sampling_comparison
import torch
from attention_comparison import AttentionComparisons
from fresh_attention_comparison import fresh_attention_cases
from hopper_comparison import hopper_cases
from linear_comparison import LinearComparisons
from prompt_attention_comparison import prompt_attention_cases
from workbench import INTERPRETED, Case, Workbench, relative_error

from headrace.kernels.activation import reference as activation_reference
from headrace.kernels.activation import triton as activation
from headrace.kernels.attention import triton as attention
from headrace.kernels.embedding import reference as embedding_reference
from headrace.kernels.embedding import triton as embedding
from headrace.kernels.low_rank import reference as low_rank_reference
from headrace.kernels.low_rank import triton as low_rank
from headrace.kernels.low_rank.stack import LowRankStack, LowRankUpdate
from headrace.kernels.norm import reference as norm_reference
from headrace.kernels.norm import triton as norm
from headrace.kernels.rotary import reference as rotary_reference
from headrace.kernels.rotary import triton as rotary
from headrace.kernels.sampling import triton as sampling
from headrace.kernels.step_inputs import reference as step_inputs_reference
from headrace.kernels.step_inputs import triton as step_inputs
from headrace.kernels.step_inputs.layout import StepLayout
from headrace.kernels.triton_launch import GpuTraits


class Comparisons(Workbench):
    """The cases of one device, dtype and scale of shapes."""

    def norms(self, tokens: int, hidden: int) -> float:
        weight = self.random(hidden)
        residual = self.random(tokens, hidden)
        delta = self.random(tokens, hidden)
        out, expected = (
            self.poisoned(tokens, hidden),
            self.poisoned(tokens, hidden, dtype=torch.float32),
        )
        norm.rms_norm(residual, weight, 1e-5, out, self.traits)
        norm_reference.rms_norm(residual, weight, 1e-5, expected)
        errors = [relative_error(out, expected)]
        chosen = self.integers([tokens - 1, 0])
        out, expected = self.poisoned(2, hidden), self.poisoned(2, hidden, dtype=torch.float32)
        norm.gather_add_rms_norm(delta, residual, weight, 1e-5, chosen, out, self.traits)
        norm_reference.gather_add_rms_norm(delta, residual, weight, 1e-5, chosen, expected)
        errors.append(relative_error(out, expected))
        out, expected = (
            self.poisoned(tokens, hidden),
            self.poisoned(tokens, hidden, dtype=torch.float32),
        )
        updated, expected_updated = residual.clone(), residual.clone()
        norm.add_rms_norm(delta, updated, weight, 1e-5, out, self.traits)
        norm_reference.add_rms_norm(delta, expected_updated, weight, 1e-5, expected)
        errors += [relative_error(out, expected), relative_error(updated, expected_updated)]
        return max(errors)

    def silu_mul(self, tokens: int, width: int) -> float:
        gate_up = self.random(tokens, 2 * width)
        out, expected = (
            self.poisoned(tokens, width),
            self.poisoned(tokens, width, dtype=torch.float32),
        )
        activation.silu_mul(gate_up, out, self.traits)
        activation_reference.silu_mul(gate_up, expected)
        return relative_error(out, expected)

    def publish(self, tokens: int, sequences: int, changed: int) -> float:
        layout = StepLayout(6, 7, tokens + 3, sequences + 4)
        staged = torch.randint(0, 1 << 30, (layout.total,), dtype=torch.int32)
        if self.device.type == "cuda":
            staged = staged.pin_memory()
        places = torch.randperm(max(sequences, 1) * 640)[:changed]
        staged[layout.changed_places :][:changed] = places
        tables = torch.full((max(sequences, 1), 640), 7, dtype=torch.int32, device=self.device)
        step = torch.full((layout.total,), -5, dtype=torch.int32, device=self.device)
        expected, expected_tables = step.clone(), tables.clone()
        sizes = layout, tokens, sequences, changed
        step_inputs.publish(staged, step, tables, *sizes, self.traits)
        step_inputs_reference.publish(staged, expected, expected_tables, *sizes)
        same = torch.equal(step, expected) and torch.equal(tables, expected_tables)
        return 0.0 if same else float("inf")

    def embed(self, tokens: int, hidden: int) -> float:
        table = self.random(97, hidden)
        token_ids = torch.randint(0, 97, (tokens,), dtype=torch.int32, device=self.device)
        out = self.poisoned(tokens, hidden, dtype=torch.float32)
        expected = out.clone()
        embedding.embed(token_ids, table, out, self.traits)
        embedding_reference.embed(token_ids, table, expected)
        return relative_error(out, expected)

    def rotate_and_cache(
        self, tokens: int, heads: int, kv_heads: int, head_dim: int, head_norm: bool
    ) -> float:
        qkv = self.random(tokens, (heads + 2 * kv_heads) * head_dim)
        cos_sin = self.random(50, head_dim, dtype=torch.float32)
        norms = (self.random(head_dim), self.random(head_dim)) if head_norm else (None, None)
        keys, values = self.caches(tokens, 4, kv_heads, head_dim)
        slots = torch.randperm(tokens * 4, device=self.device)[:tokens].to(torch.int32)
        positions = torch.randint(0, 50, (tokens,), dtype=torch.int32, device=self.device)
        expected_qkv = qkv.float().clone()
        expected_keys = keys.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        expected_values = values.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        rotary_reference.rotate_and_cache(
            expected_qkv, cos_sin, *norms, 1e-6, heads, kv_heads, expected_keys, expected_values,
            positions, slots,
        )  # fmt: skip
        padded = torch.cat((slots, self.integers([-1])))
        padded_qkv = torch.cat((qkv, self.random(1, qkv.shape[1])))
        last = padded_qkv[-1].clone()
        rotary.rotate_and_cache(
            padded_qkv, cos_sin, *norms, 1e-6, heads, kv_heads, keys, values,
            torch.cat((positions, self.integers([0]))), padded, self.traits,
        )  # fmt: skip
        if not torch.equal(padded_qkv[-1], last):
            return float("inf")
        pairs = [(padded_qkv[:-1], expected_qkv), (keys, expected_keys), (values, expected_values)]
        return max(relative_error(out, expected) for out, expected in pairs)

    def low_rank(
        self,
        adapter_of_token: list[int],
        columns: int,
        widths: tuple[int, ...],
        ranks: list[list[int]],
        max_query_length: int,
    ) -> float:
        """Ranks by adapter and projection, 0 for none; infinite where another token is touched."""
        adapters = [
            [
                LowRankUpdate(self.random(r, columns), self.random(w, r), columns**-0.5)
                if r
                else None
                for r, w in zip(row, widths, strict=True)
            ]
            for row in ranks
        ]
        stack = LowRankStack.build(adapters, widths, columns, self.dtype, self.device)
        chosen = self.integers(adapter_of_token)
        x, out = self.random(len(chosen), columns), self.random(len(chosen), sum(widths))
        x[chosen < 0] = float("nan")
        before, expected = out.clone(), out.to(torch.float32, copy=True)
        workspace = low_rank.LowRankWorkspace(self.device)
        low_rank_reference.add_low_rank(x, stack, chosen, expected)
        low_rank.add_low_rank(x, stack, chosen, out, max_query_length, workspace, self.traits)
        if not torch.equal(out[chosen < 0], before[chosen < 0]):
            return float("inf")
        return relative_error(out, expected)

    def most_likely(self, rows: int, vocab_size: int) -> float:
        """Share of rows whose token or finiteness is wrong."""
        logits = self.random(rows, vocab_size, dtype=torch.float32)
        logits[0, 7] = logits[0, vocab_size - 1] = 50.0
        logits[-1, vocab_size - 2] = float("nan")
        if rows > 2:
            logits[1] = float("-inf")
            logits[2, 3] = float("inf")
        find = sampling.MostLikely(rows, self.device, self.traits)
        places = torch.randperm(rows, device=self.device).to(torch.int32)
        last = torch.full((rows,), -1, dtype=torch.int32, device=self.device)
        wrong = torch.zeros(rows, dtype=torch.bool, device=self.device)
        for _ in range(2):
            find.find(logits, places, last)
            token_ids, finite = find.token_ids, find.finite
            expected = logits.amax(-1).isfinite()
            wrong |= finite != expected
            wrong |= expected & (token_ids != logits.argmax(-1))
            wrong |= (token_ids < 0) | (token_ids >= vocab_size)
            wrong |= last[places.long()] != token_ids
        wrong[0] |= bool(rows > 1 and token_ids[0] != 7)
        return float(wrong.float().mean())


def sampling_cases(
    device: torch.device, traits: GpuTraits, vocab_size: int, block: int, seeds: int
) -> Iterator[Case]:
    """The sampler's kernels; an error is a share of wrong rows, or of log-probabilities."""
    shape = vocab_size, device, traits, block
    name = f"{vocab_size} float32"
    for tied in (False, True):
        case = partial(sampling_comparison.draws, *shape, seeds, tied=tied)
        yield f"sampling draws tied={tied} {name}", case
    yield f"sampling neighbours {name}", partial(sampling_comparison.neighbours, *shape)
    yield f"sampling penalties {name}", partial(sampling_comparison.penalties, *shape)
    yield f"sampling logprobs {name}", partial(sampling_comparison.logprobs, *shape)
    yield f"sampling feeding {name}", partial(sampling_comparison.feeding, *shape)


def in_few_slices(case: Callable[[], float]) -> float:
    """The interpreter takes as long for each slice of a row; ``most_likely`` has them all."""
    with mock.patch.object(sampling, "_MOST_SLICES", 8):
        return case()


def interpreted_cases() -> Iterator[Case]:
    """Tiny shapes for the interpreter."""
    # Imported here: with a GPU this script is about kernels alone.
    from decoder_comparison import PLAIN, decoder_error
    from quick_interpreter import patch_once_a_launch

    patch_once_a_launch()
    here = Comparisons(torch.device("cpu"), torch.float32, INTERPRETED)
    for name, case in sampling_cases(here.device, INTERPRETED, 600, 256, 1):
        yield name, partial(in_few_slices, case)
    # Of float32 logits, whatever the model's dtype.
    yield f"most_likely {here.name}", partial(here.most_likely, 4, 5003)
    yield f"most_likely many {here.name}", partial(here.most_likely, 33, 700)

    yield "decoder fused float16", partial(decoder_error, INTERPRETED, adapted=False)
    yield "decoder plain float16", partial(decoder_error, INTERPRETED, False, PLAIN)
    yield "decoder adapted float16", partial(decoder_error, INTERPRETED, adapted=True)
    for dtype in (torch.float16, torch.float32):
        here = Comparisons(torch.device("cpu"), dtype, INTERPRETED)
        name = here.name
        yield from fresh_attention_cases(here.device, dtype, INTERPRETED)
        yield from AttentionComparisons(here.device, dtype, INTERPRETED).interpreted_cases()
        yield from LinearComparisons(here.device, dtype, INTERPRETED).interpreted_cases()
        yield f"norms {name}", partial(here.norms, 3, 40)
        yield f"silu_mul {name}", partial(here.silu_mul, 3, 1030)
        yield f"embed {name}", partial(here.embed, 3, 33)
        yield f"publish {name}", partial(here.publish, 5, 2, 3)
        yield f"publish many {name}", partial(here.publish, 600, 1, 0)
        for head_dim, head_norm in ((64, False), (96, True)):
            yield (
                f"rotate_and_cache {head_dim} norm={head_norm} {name}",
                partial(here.rotate_and_cache, 3, 3, 1, head_dim, head_norm),
            )

        for label, length, tokens in (
            ("single tokens", 1, [0, -1, 2, 1, 0]),
            ("prompts", 9, [0] * 9 + [-1] * 4 + [2] * 10 + [1]),
        ):
            ranks = [[3, 0, 17], [0, 0, 0], [20, 5, 0]]
            yield (
                f"low_rank {label} {name}",
                partial(here.low_rank, tokens, 70, (40, 9, 140), ranks, length),
            )


def gpu_cases(traits: GpuTraits) -> Iterator[Case]:
    """Real and odd shapes on a device."""
    for vocab_size in (128256, 32003):
        yield from sampling_cases(torch.device("cuda"), traits, vocab_size, 4096, 6)
    for dtype in (torch.bfloat16, torch.float16):
        here = Comparisons(torch.device("cuda"), dtype, traits)
        name = here.name
        yield from hopper_cases(dtype, traits)
        if traits.wide_matrix_unit:
            yield from fresh_attention_cases(here.device, dtype, traits)
        yield from AttentionComparisons(here.device, dtype, traits).gpu_cases()
        yield from LinearComparisons(here.device, dtype, traits).gpu_cases()
        yield from prompt_attention_cases(dtype, traits)
        for tokens, hidden in ((1, 4096), (7, 576), (333, 8192)):
            yield f"norms {tokens}x{hidden} {name}", partial(here.norms, tokens, hidden)
        for tokens, width in ((1, 14336), (77, 1537)):
            yield f"silu_mul {tokens} {name}", partial(here.silu_mul, tokens, width)
            yield f"embed {tokens} {name}", partial(here.embed, tokens, width)
            yield f"publish {tokens} {name}", partial(here.publish, tokens, 40, 2048)
        for head_dim in attention.HEAD_SIZES:
            for tokens, heads, kv_heads, head_norm in ((1, 32, 8, False), (100, 9, 3, True)):
                yield (
                    f"rotate_and_cache {tokens} {head_dim} {name}",
                    partial(here.rotate_and_cache, tokens, heads, kv_heads, head_dim, head_norm),
                )
        for rows, vocab_size in ((1, 128256), (5, 1003), (256, 128256), (3, 32000)):
            yield f"most_likely {rows} {name}", partial(here.most_likely, rows, vocab_size)
        for length, tokens in ((1, 37), (99, 300)):
            chosen = torch.randint(-1, 3, (tokens,)).tolist()
            ranks = [[8, 0, 8], [16, 64, 1], [0, 0, 0]]
            yield (
                f"low_rank {tokens} {name}",
                partial(here.low_rank, chosen, 4096, (4096, 1024, 1024), ranks, length),
            )


def main() -> int:
    """Print a JSON line with the relative error of each case; 1 when a case raised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth case from the Ith")
    arguments = parser.parse_args()
    torch.manual_seed(torch.seed())
    if arguments.device == "cpu":
        cases = interpreted_cases()
    else:
        cases = gpu_cases(GpuTraits.of(torch.device(arguments.device)))
    failed = False
    shard, shards = map(int, arguments.shard.split("/"))
    chosen = [(name, case) for name, case in cases if arguments.only in name]
    for name, case in chosen[shard::shards]:
        try:
            print(json.dumps({"case": name, "error": case()}), flush=True)
        except Exception:
            failed = True
            traceback.print_exc()
            print(json.dumps({"case": name, "raised": traceback.format_exc(limit=-1)}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
