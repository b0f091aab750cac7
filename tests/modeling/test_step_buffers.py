"""A step's inputs on their way to a device; the device and its kernel are played by the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headrace.kernels.step_inputs import reference
from headrace.kernels.step_inputs.layout import MOST_CHANGED
from headrace.modeling import step_buffers
from headrace.modeling.step_buffers import StepBuffers

MAX_TOKENS, MAX_ROWS, MAX_BLOCKS = 20, 6, 1000


class Device:
    """Calls itself a GPU where buffers ask, and lies in ordinary memory."""

    type = "cuda"


class Publisher:
    """The reference in the kernel's place; counts its calls' changed entries."""

    def __init__(self) -> None:
        self.changed: list[int] = []

    def publish(self, *arguments: Any) -> None:
        reference.publish(*arguments)
        self.changed.append(arguments[-1])


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def plain(*shape: Any, dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return zeros(*shape, dtype=dtype)

    monkeypatch.setattr(step_buffers.torch, "zeros", plain)


def buffers(publisher: Publisher | None) -> StepBuffers:
    device: Any = Device()
    return StepBuffers(MAX_TOKENS, MAX_ROWS, MAX_BLOCKS, 4, device, publisher)


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_step_arrives_whole_in_either_way(by_kernel: bool) -> None:
    ours = buffers(Publisher() if by_kernel else None)
    for number in range(1, 4):
        host = ours.begin()
        host.token_ids[:5] = range(10 * number, 10 * number + 5)
        host.query_start[:4] = [0, 2, 3, 5]
        host.rows[:3] = [4, 0, number]
        host.fed_rows[:2] = [number, 5]
        ours.set_blocks(4, 2, [9 + number, 8])
        ours.publish(5, 3)
        assert ours.inputs.token_ids[:5].tolist() == list(range(10 * number, 10 * number + 5))
        assert ours.inputs.query_start[:4].tolist() == [0, 2, 3, 5]
        assert ours.inputs.rows[:3].tolist() == [4, 0, number]
        assert ours.section("fed_rows")[:2].tolist() == [number, 5]
        assert ours.inputs.block_tables[4, :5].tolist() == [0, 0, 9 + number, 8, 0]
    assert (ours.inputs.block_tables.numpy() == ours.block_tables).all()


@pytest.mark.usefixtures("on_a_gpu")
def test_every_field_begins_at_a_multiple_of_16_bytes() -> None:
    ours = buffers(None)
    for name in ours._sections:
        assert ours.section(name).storage_offset() % 4 == 0, name


@pytest.mark.usefixtures("on_a_gpu")
def test_a_place_that_changes_twice_before_a_step_holds_the_later_block() -> None:
    publisher = Publisher()
    ours = buffers(publisher)
    ours.set_blocks(1, 0, [3, 4, 5])
    ours.set_blocks(1, 1, [7])
    assert not ours.inputs.block_tables.any()
    ours.begin()
    ours.publish(1, 1)
    assert ours.inputs.block_tables[1, :4].tolist() == [3, 7, 5, 0]
    assert publisher.changed == [3]
    ours.begin()
    ours.publish(1, 1)
    assert publisher.changed == [3, 0]


@pytest.mark.usefixtures("on_a_gpu")
def test_more_changes_than_a_step_carries_arrive_in_order() -> None:
    ours = buffers(Publisher())
    for row in range(MAX_ROWS):
        ours.set_blocks(row, 0, [row + 1] * MAX_BLOCKS)
    ours.set_blocks(0, 5, [77])
    assert MAX_ROWS * MAX_BLOCKS > MOST_CHANGED
    ours.begin()
    ours.publish(1, 1)
    assert (ours.inputs.block_tables.numpy() == ours.block_tables).all()
    assert ours.block_tables[0, 5] == 77
