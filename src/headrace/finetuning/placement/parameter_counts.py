"""How many parameters are trained and how many are frozen, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.sizes import parameter_count
from headrace.link.errors import ConfigurationError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Of a base model with its adapters."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.trainable + self.frozen


def projection_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name of each projection of a layer to its (output, input) width, in order of use."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return {
        "q_proj": (config.q_size, hidden),
        "k_proj": (config.kv_size, hidden),
        "v_proj": (config.kv_size, hidden),
        "o_proj": (hidden, config.q_size),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def adapted_projections(
    config: ModelConfig, target_modules: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """The projections that get an adapter; the head never does.

    Args:
        config: The architecture.
        target_modules: Names of projections, or ``("all-linear",)``.

    Raises:
        ConfigurationError: a name that matches none of the model's projections.
    """
    shapes = projection_shapes(config)
    if ALL_LINEAR in target_modules:
        return shapes
    unknown = [name for name in target_modules if name not in shapes]
    if unknown:
        raise ConfigurationError(
            f"target module `{unknown[0]}` matches nothing in this model; "
            f"it has {', '.join(shapes)} (or {ALL_LINEAR})"
        )
    return {name: shapes[name] for name in shapes if name in target_modules}


def adapter_parameters(config: ModelConfig, rank: int, target_modules: tuple[str, ...]) -> int:
    """Parameters of the low-rank pairs A [rank, input] and B [output, rank] of all layers.

    Raises:
        ConfigurationError: see ``adapted_projections``.
    """
    widths = adapted_projections(config, target_modules).values()
    return config.num_layers * rank * sum(rows + columns for rows, columns in widths)


def count_parameters(
    config: ModelConfig, rank: int, target_modules: tuple[str, ...]
) -> ParameterCounts:
    """Trained and frozen parameters; a tied embedding counts once.

    Raises:
        ConfigurationError: see ``adapted_projections``.
    """
    return ParameterCounts(
        adapter_parameters(config, rank, target_modules), parameter_count(config)
    )
