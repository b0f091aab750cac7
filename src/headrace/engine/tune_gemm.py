"""GEMM choices of a model, made ahead of its first start and kept in the tuning file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.config import ModelConfig
from headrace.engine.limits import decide_batch
from headrace.engine.settings import EngineSettings
from headrace.hardware.switches import is_on
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.backend import Backend
from headrace.modeling.backends.choose import BackendChoice, choose_backend
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.loading.load import load_decoder, random_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits


@dataclass(frozen=True, slots=True)
class TunedGemm:
    """The choice for one weight shape [rows, columns] and number of tokens.

    Attributes:
        microseconds: Time of the choice, on a GPU a small norm before it included.
        library_microseconds: The same with the vendor library's default, or a CPU's default plan.
    """

    rows: int
    columns: int
    tokens: int
    choice: str
    microseconds: float
    library_microseconds: float

    @property
    def gain(self) -> float:
        """Share of the library's time that the choice saves; 0 where it was not measured."""
        if not self.library_microseconds:
            return 0.0
        return 1.0 - self.microseconds / self.library_microseconds


def tune_gemm(model: ModelConfig | Checkpoint, dtype: str = "auto") -> list[TunedGemm]:
    """Measure, or read what was measured before; the file is the one that serving reads.

    On a GPU only shapes matter, so the weights are drawn rather than read. On a CPU their formats
    matter too: a checkpoint's are read.

    Raises:
        ConfigurationError: No backend here that has a choice, or a model that does not fit.
    """
    config = model.config if isinstance(model, Checkpoint) else model
    choice = choose_backend(
        "auto", "auto", dtype, head_dim=config.head_dim, packed_weights=dtype == "auto"
    )
    if choice.backend.name == "native":
        return _on_cpu(model, config, choice.backend)
    if choice.backend.name != "triton":
        raise ConfigurationError(
            "GEMMs are tuned for Triton on a GPU and for native kernels on a CPU; here is "
            f"{choice.backend.name} on {choice.device}: {choice.reason}"
        )
    return _on_gpu(config, choice)


def _on_cpu(
    model: ModelConfig | Checkpoint, config: ModelConfig, backend: Backend
) -> list[TunedGemm]:
    if not is_on("TUNED_GEMM"):
        raise ConfigurationError("HEADRACE_TUNED_GEMM is off: nothing is tuned")
    settings = EngineSettings()
    batch = decide_batch(settings, config, on_gpu=False)
    decoder = (
        load_decoder(model, backend.operations, batch.token_budget)
        if isinstance(model, Checkpoint)
        else random_decoder(config, 0, backend.operations, batch.token_budget)
    )
    limits = RunnerLimits(
        max_tokens=batch.token_budget,
        max_rows=batch.max_batch_size,
        max_length=batch.token_budget,
        block_size=settings.block_size,
        num_blocks=1,
    )
    ModelRunner(config, decoder, backend, limits)
    assert isinstance(backend, NativeCpuBackend)
    return [
        TunedGemm(
            rows=tuned.shape.n,
            columns=tuned.shape.k,
            tokens=tuned.rows,
            choice=tuned.label(),
            microseconds=tuned.microseconds,
            library_microseconds=tuned.default_microseconds,
        )
        for tuned in backend.tuned_linears
    ]


def _on_gpu(config: ModelConfig, choice: BackendChoice) -> list[TunedGemm]:
    # Only here: Triton is absent where torch was built for CPUs.
    from headrace.modeling.backends.triton_gpu import TritonBackend

    backend = choice.backend
    assert isinstance(backend, TritonBackend)
    try:
        decoder = random_decoder(config, 0, backend.operations, 1)
    except torch.cuda.OutOfMemoryError as error:
        raise ConfigurationError(
            f"the model's weights do not fit {choice.device}: GEMMs are tuned on all of them"
        ) from error
    results = backend.operations.tune()
    del decoder
    return [
        TunedGemm(
            rows=tuned.num_rows,
            columns=tuned.columns,
            tokens=tuned.tokens,
            choice=tuned.choice.label(),
            microseconds=tuned.microseconds,
            library_microseconds=tuned.library_microseconds,
        )
        for tuned in results
    ]
