"""Which kernels a GPU's first start compiles beside the tuner's."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

import torch

from headrace.kernels.attention.triton import choose_decode_tiling
from headrace.kernels.triton_launch import GpuTraits
from headrace.modeling.backends import precompile
from headrace.modeling.backends.captured_graphs import decode_buckets
from headrace.modeling.operations import AttentionShape

TRAITS = GpuTraits(132, 232448, True, True, warpgroup_kernels=True)
SHAPE = AttentionShape(32, 8, 128, 0.1, None)


def parts() -> list[precompile.Part]:
    return precompile.parts_of(
        [(SHAPE, 16)], decode_buckets(256), 512, 14336, 4096, 128256, torch.bfloat16, TRAITS
    )


def test_every_launch_choice_of_decode_attention_is_compiled_once() -> None:
    def tiling(count: int) -> object:
        return choose_decode_tiling(count, 32, 8, 128, 8192, TRAITS)

    compiled = [
        tiling(count)
        for part in parts()
        if part.kind == "decode attention"
        for count in part.sequences
    ]
    assert set(compiled) == {tiling(count) for count in decode_buckets(256)}
    assert len(compiled) == len(set(compiled)) > 5


def test_a_part_survives_the_way_to_its_process() -> None:
    import msgspec

    for part in parts():
        assert msgspec.json.decode(msgspec.json.encode(part), type=precompile.Part) == part
    assert {part.kind for part in parts()} == {
        "decode attention", "prompt attention", "gated", "gated prompts", "sampling"
    }  # fmt: skip


def test_a_process_that_fails_is_waited_for_and_nothing_else() -> None:
    """There is no such device here: the kernels are compiled later then."""
    wait = precompile.start(parts()[:1], torch.device("cuda"))
    wait()
