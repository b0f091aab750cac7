"""Which graph a step replays and how its spare places are padded; graphs are played by fakes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from headrace.checkpoint.config import ModelConfig
from headrace.modeling.activations import Activations
from headrace.modeling.backends.captured_graphs import GraphProgram, decode_buckets
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.step import StepInputs

CONFIG = ModelConfig(
    family="llama", hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1,
    num_kv_heads=1, head_dim=8, vocab_size=16, max_position=64, rms_norm_eps=1e-5,
    rope_theta=1e4,
)  # fmt: skip
MAX_TOKENS, MAX_ROWS = 200, 10


class FakeGraph:
    """Keeps the sizes that were captured; counts replays."""

    capturing: FakeGraph | None = None

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] = ()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


class Stage:
    """A program over buffers full of earlier steps' rubbish, and what it ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int = MAX_ROWS) -> None:
        self.eager: list[tuple[int, ...]] = []
        self.whole_prompts: list[bool] = []

        @contextmanager
        def capture(graph: FakeGraph, pool: Any) -> Iterator[None]:
            FakeGraph.capturing = graph
            yield
            FakeGraph.capturing = None

        monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
        monkeypatch.setattr(torch.cuda, "graph", capture)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

        def ints(length: int) -> torch.Tensor:
            return torch.full((length,), 7, dtype=torch.int32)

        self.step = StepInputs(
            token_ids=ints(MAX_TOKENS), positions=ints(MAX_TOKENS), cache_slots=ints(MAX_TOKENS),
            query_start=ints(rows + 1), context_lengths=ints(rows), rows=ints(rows),
            block_tables=torch.zeros(rows, 4, dtype=torch.int32),
            sampled_tokens=ints(MAX_TOKENS), max_query_length=MAX_TOKENS, max_context_length=64,
        )  # fmt: skip
        operations = TorchBackend(torch.device("cpu"), torch.float32).operations
        activations = Activations.allocate(CONFIG, operations, MAX_TOKENS, rows)
        self.program = GraphProgram(self._compute, self.step, activations, rows)
        self.program.capture()
        self.eager.clear()
        assert not any(self.whole_prompts), "a graph may be replayed for any step that fits it"
        self.whole_prompts.clear()

    def _compute(self, step: StepInputs, buffers: Activations) -> None:
        sizes = (
            len(step.token_ids), len(step.rows), len(step.sampled_tokens), step.max_query_length
        )  # fmt: skip
        assert len(buffers.normed) == sizes[0]
        assert len(step.query_start) == sizes[1] + 1
        self.whole_prompts.append(step.whole_prompts)
        if FakeGraph.capturing is not None:
            FakeGraph.capturing.sizes = sizes
        else:
            self.eager.append(sizes)

    def replayed(self) -> list[tuple[int, ...]]:
        return [graph.sizes for graph in self.program._graphs.values() if graph.replays]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_decode_step_replays_the_next_larger_bucket(stage: Stage) -> None:
    stage.program.run(3, 3, 3, 1, 50)
    assert stage.replayed() == [(4, 4, 4, 1)]
    assert stage.eager == []
    assert stage.step.context_lengths.tolist() == [7, 7, 7, 0, 7, 7, 7, 7, 7, 7]
    assert stage.step.cache_slots[:5].tolist() == [7, 7, 7, -1, 7]


def test_decode_step_of_a_bucket_s_size_is_not_padded(stage: Stage) -> None:
    stage.program.run(8, 8, 8, 1, 50)
    assert stage.replayed() == [(8, 8, 8, 1)]
    assert (stage.step.cache_slots == 7).all()
    assert (stage.step.context_lengths == 7).all()


def test_step_with_prompts_gives_spare_sequences_no_tokens(stage: Stage) -> None:
    stage.program.run(70, 3, 2, 68, 60)
    assert stage.replayed() == [(128, 8, 8, 128)]
    assert stage.step.query_start.tolist() == [7, 7, 7, 7, 70, 70, 70, 70, 70, 7, 7]
    assert stage.step.context_lengths.tolist() == [7, 7, 7, 0, 0, 0, 0, 0, 7, 7]
    assert (stage.step.cache_slots[70:128] == -1).all()
    assert (stage.step.cache_slots[128:] == 7).all()


def test_step_with_prompts_and_many_sequences_never_replays_a_decode_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph of 64 tokens of 64 sequences is a decode graph: it skips prompts."""
    stage = Stage(monkeypatch, rows=64)
    stage.program.run(50, 40, 40, 8, 60)
    assert stage.replayed() == [(128, 64, 64, 128)]


@pytest.mark.parametrize(
    "sizes",
    [(199, 1, 1, 199), (100, 9, 9, 50), (20, 2, 15, 10)],
    ids=["too many tokens", "too many sequences", "more logits than sequences"],
)
def test_other_steps_run_at_once_at_their_own_size(
    stage: Stage, sizes: tuple[int, int, int, int]
) -> None:
    stage.program.run(*sizes, 60)
    assert stage.replayed() == []
    assert stage.eager == [sizes]
    assert (stage.step.cache_slots == 7).all()


@pytest.mark.parametrize(
    ("tokens", "sequences", "longest", "context", "whole"),
    [
        (199, 1, 199, 199, True),
        (195, 1, 195, 200, False),
        (198, 9, 22, 22, True),
        (198, 9, 30, 30, False),
        (198, 9, 22, 40, False),
    ],
    ids=["one", "one in part cached", "of one length", "of several lengths", "some cached"],
)
def test_only_prompts_of_one_length_without_cached_tokens_are_called_whole(
    stage: Stage, tokens: int, sequences: int, longest: int, context: int, whole: bool
) -> None:
    stage.program.run(tokens, sequences, sequences, longest, context)
    assert stage.whole_prompts == [whole]


@pytest.mark.parametrize("most", [1, 3, 64, 200, 256, 1000])
def test_decode_buckets_waste_little(most: int) -> None:
    buckets = decode_buckets(most)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == most
    for size in range(1, most + 1):
        bucket = next(b for b in buckets if b >= size)
        assert bucket - size <= max(3, size // 2)
