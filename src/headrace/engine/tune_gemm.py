"""GEMM choices of a model, made ahead of its first start and kept in the tuning file."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.checkpoint.config import ModelConfig
from headrace.link.errors import ConfigurationError
from headrace.modeling.backends.choose import choose_backend
from headrace.modeling.loading.load import random_decoder


@dataclass(frozen=True, slots=True)
class TunedGemm:
    """The choice for one weight shape [rows, columns] and number of tokens.

    Attributes:
        microseconds: Time of the choice, a small norm before it included.
        library_microseconds: The same with the vendor library's default.
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


def tune_gemm(config: ModelConfig, dtype: str = "auto") -> list[TunedGemm]:
    """Measure, or read what was measured before; the file is the one that serving reads.

    Only shapes matter, so the weights are drawn rather than read.

    Raises:
        ConfigurationError: No GPU with Triton here, or a model that does not fit it.
    """
    choice = choose_backend("auto", "auto", dtype, head_dim=config.head_dim)
    if choice.backend.name != "triton":
        raise ConfigurationError(
            f"GEMMs are tuned on a GPU with Triton only; here is {choice.backend.name} on "
            f"{choice.device}"
        )
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
