"""The GPU backend: its operations, its sampler, steps in captured graphs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from headrace.checkpoint.builtin import cache_directory
from headrace.hardware.switches import is_on
from headrace.kernels.step_inputs import triton as step_inputs
from headrace.kernels.step_inputs.layout import StepLayout
from headrace.link.errors import ConfigurationError
from headrace.modeling.activations import Activations
from headrace.modeling.backends import precompile
from headrace.modeling.backends.backend import Computation
from headrace.modeling.backends.captured_graphs import GraphProgram, decode_buckets
from headrace.modeling.backends.triton_operations import TritonOperations
from headrace.modeling.sampling.device_sampler import DeviceSampler
from headrace.modeling.step import StepInputs


class TritonBackend:
    """A CUDA or ROCm device.

    Args:
        device: Which.
        dtype: Of weights and activations.
        tuning: ``auto``: measured choices of GEMM kernels, kept under ``tuning_directory``;
            ``library``: the vendor library for all, for comparison; ``off``: choices without
            measurement.
        tuning_directory: Where tuning tables are kept; ``None``: in headrace's cache directory.
        most_graph_sequences: Largest decode step that is captured; larger ones run eagerly.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        tuning: str = "auto",
        tuning_directory: Path | None = None,
        most_graph_sequences: int = 512,
    ) -> None:
        directory = tuning_directory or cache_directory() / "tuning"
        if tuning == "auto" and not is_on("TUNED_GEMM"):
            tuning = "library"
        self._operations = TritonOperations(device, dtype, directory)
        if tuning == "library":
            self._operations.tuner.use_library()
        elif tuning == "off":
            self._operations.tuner.freeze()
        elif tuning != "auto":
            raise ConfigurationError(f"tuning must be auto, library or off, got `{tuning}`")
        self._most_graph_sequences = most_graph_sequences if is_on("GRAPHS") else 0

    @property
    def name(self) -> str:
        """As ``--backend`` names it."""
        return "triton"

    @property
    def operations(self) -> TritonOperations:
        """The operations; each launches at once."""
        return self._operations

    def make_sampler(
        self, max_rows: int, max_length: int, max_logits: int, vocab_size: int
    ) -> DeviceSampler:
        """Kernels of our own: nothing is allocated after."""
        operations = self._operations
        return DeviceSampler(
            max_rows, max_length, max_logits, vocab_size, operations.device, operations.traits
        )

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
        """Queue the way of a step's inputs to the device; see ``PublishesSteps``."""
        step_inputs.publish(
            staged,
            step,
            block_tables,
            layout,
            num_tokens,
            num_sequences,
            num_changed,
            self._operations.traits,
        )

    def compile(
        self, computation: Computation, step: StepInputs, activations: Activations
    ) -> GraphProgram:
        """Tune GEMMs if that was not done yet; graphs are captured by the program's ``capture``."""
        self._operations.tune(lambda: self._precompile(step, activations))
        most = min(self._most_graph_sequences, step.rows.shape[0], activations.logits.shape[0])
        return GraphProgram(computation, step, activations, most)

    def _precompile(self, step: StepInputs, activations: Activations) -> Callable[[], None]:
        operations, rows = self._operations, step.rows.shape[0]
        parts = precompile.parts_of(
            list(operations.attention_shapes),
            decode_buckets(rows),
            step.block_tables.shape[1],
            activations.activated.shape[1],
            activations.normed.shape[1],
            activations.logits.shape[1],
            operations.activation_dtype,
            operations.traits,
        )
        return precompile.start(parts, operations.device)
