"""The step's inputs in place: written by the host with numpy, seen by the device as tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from headrace.kernels.step_inputs.layout import MOST_CHANGED, StepLayout
from headrace.modeling.step import StepInputs

Int32Array = npt.NDArray[np.int32]


_PER_TOKEN = (
    "token_ids",
    "positions",
    "cache_slots",
    "sampled_tokens",
    "prompt_targets",
    "adapter_of_token",
)


@dataclass(frozen=True, slots=True)
class HostStep:
    """What the host writes for one step, at capacity.

    The first seven are those of ``StepInputs``. ``sampling_rows`` [R] are the rows that sample.
    ``fed_tokens`` are indices among the T tokens of those that still lie on the device, sampled
    there by an earlier step, and ``fed_rows`` the rows that sampled them. ``prompt_targets`` are
    the tokens of prompts whose log-probability is wanted. ``adapter_of_token`` [T] is written only
    where the model carries adapters.
    """

    token_ids: Int32Array
    positions: Int32Array
    cache_slots: Int32Array
    query_start: Int32Array
    context_lengths: Int32Array
    rows: Int32Array
    sampled_tokens: Int32Array
    sampling_rows: Int32Array
    fed_tokens: Int32Array
    fed_rows: Int32Array
    prompt_targets: Int32Array
    adapter_of_token: Int32Array


@runtime_checkable
class PublishesSteps(Protocol):
    """A backend with a kernel that brings a step's inputs to the device."""

    def publish(
        self,
        staged: torch.Tensor,
        step: torch.Tensor,
        block_tables: torch.Tensor,
        layout: StepLayout,
        num_tokens: int,
        num_sequences: int,
        num_changed: int,
    ) -> None:
        """Copy what is used of every field, write the changed entries of the block tables.

        It is queued; see ``headrace.kernels.step_inputs.reference.publish`` for the arguments.
        """


class StepBuffers:
    """``StepInputs`` at capacity, and their host side.

    On a CPU the host writes straight into the tensors. Elsewhere it writes into one of two pinned
    copies in turn, which ``publish`` sends: step N + 1 may be written while step N's inputs are on
    their way. With a kernel to publish by, new blocks of a step travel with its inputs.

    Attributes:
        inputs: The tensors on the device, at capacity.
        block_tables: [max_rows, max_blocks] host side; change it through ``set_blocks``.

    Args:
        max_tokens: Most tokens of a step.
        max_rows: Most sequences that run at once.
        max_blocks: Most cache blocks of one sequence.
        block_size: Tokens of one block.
        device: Where the model computes.
        publisher: Sends a step's inputs; ``None``: one transfer of the whole, and one for each
            change of a block table.
    """

    def __init__(
        self,
        max_tokens: int,
        max_rows: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
        publisher: PublishesSteps | None = None,
    ) -> None:
        names = [field.name for field in fields(HostStep)]
        per_row = [name for name in names if name not in _PER_TOKEN]
        self._layout = layout = StepLayout(
            len(_PER_TOKEN), len(per_row), _aligned(max_tokens), _aligned(max_rows + 1)
        )
        self._sections: dict[str, slice] = {}
        for index, name in enumerate([*_PER_TOKEN, *per_row]):
            length = max_tokens if name in _PER_TOKEN else max_rows + (name == "query_start")
            start = layout.start(index)
            self._sections[name] = slice(start, start + length)
        self._device_step = torch.zeros(layout.total, dtype=torch.int32, device=device)
        device_tables = torch.zeros(max_rows, max_blocks, dtype=torch.int32, device=device)
        if device.type == "cpu":
            self._staging: list[torch.Tensor] = []
            self._host_tables = device_tables
            arrays = [self._device_step.numpy()]
        else:
            self._staging = [
                torch.zeros(layout.total, dtype=torch.int32, pin_memory=True) for _ in range(2)
            ]
            self._host_tables = torch.zeros(max_rows, max_blocks, dtype=torch.int32)
            arrays = [stage.numpy() for stage in self._staging]
        self._hosts = [
            HostStep(**{name: array[part] for name, part in self._sections.items()})
            for array in arrays
        ]
        self._turn = 0
        self._publisher = publisher
        self._changed: dict[int, int] = {}
        self.block_tables: Int32Array = self._host_tables.numpy()
        self.inputs = StepInputs(
            token_ids=self.section("token_ids"),
            positions=self.section("positions"),
            cache_slots=self.section("cache_slots"),
            query_start=self.section("query_start"),
            context_lengths=self.section("context_lengths"),
            rows=self.section("rows"),
            block_tables=device_tables,
            sampled_tokens=self.section("sampled_tokens"),
            max_query_length=max_tokens,
            max_context_length=max_blocks * block_size,
            adapter_of_token=self.section("adapter_of_token"),
        )

    def section(self, name: str) -> torch.Tensor:
        """A field of ``HostStep`` on the device, at capacity."""
        return self._device_step[self._sections[name]]

    def begin(self) -> HostStep:
        """The host side to write the next step into."""
        self._turn = (self._turn + 1) % len(self._hosts)
        return self._hosts[self._turn]

    def publish(self, num_tokens: int, num_sequences: int) -> None:
        """Send what was written since ``begin`` to the device: a step of so many tokens."""
        if not self._staging:
            return
        staged = self._staging[self._turn]
        if self._publisher is None:
            self._device_step.copy_(staged, non_blocking=True)
            return
        changed, layout = self._changed, self._layout
        if changed:
            written = staged.numpy()
            for start, values in (
                (layout.changed_places, changed.keys()),
                (layout.changed_blocks, changed.values()),
            ):
                written[start : start + len(changed)] = list(values)
        self._publisher.publish(
            staged,
            self._device_step,
            self.inputs.block_tables,
            layout,
            num_tokens,
            num_sequences,
            len(changed),
        )
        changed.clear()

    def set_blocks(self, row: int, first_index: int, blocks: list[int]) -> None:
        """Write ``blocks`` into a row's table from ``first_index`` on, for later steps."""
        part = (row, slice(first_index, first_index + len(blocks)))
        self.block_tables[part] = blocks
        if not self._staging:
            return
        place = row * self.block_tables.shape[1] + first_index
        if self._publisher is not None and len(self._changed) + len(blocks) <= MOST_CHANGED:
            self._changed.update(zip(range(place, place + len(blocks)), blocks, strict=True))
            return
        # From pageable memory, which the driver has read when this returns: the source may then
        # change, and the host does not wait for the steps under way.
        self.inputs.block_tables[part].copy_(self._host_tables[part], non_blocking=True)
        for overtaken in range(place, place + len(blocks)):
            self._changed.pop(overtaken, None)


def _aligned(entries: int) -> int:
    """So many that the field after them begins at a multiple of 16 bytes.

    Triton compiles a kernel once more for pointers that do not.
    """
    return -(-entries // 4) * 4
