"""From checked adapters to an ``AdapterSet`` in the layout of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from headrace.checkpoint.config import ModelConfig
from headrace.kernels.low_rank.stack import LowRankStack, LowRankUpdate
from headrace.link.errors import ConfigurationError
from headrace.modeling.adapters.adapter_set import AdapterSet, LayerUpdates
from headrace.modeling.adapters.peft_directory import PeftAdapter, read_adapter
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import Operations

MAX_ADAPTERS = 1024


def read_adapters(
    sources: Mapping[str, str], config: ModelConfig, max_rank: int
) -> list[PeftAdapter]:
    """Check every adapter against the served model; nothing but headers is read.

    Args:
        sources: Name to PEFT directory or hub id.
        max_rank: Largest rank that is accepted.

    Raises:
        ConfigurationError: One of them cannot be served, or there are too many.
    """
    if len(sources) > MAX_ADAPTERS:
        raise ConfigurationError(
            f"--lora-adapters: at most {MAX_ADAPTERS} adapters, got {len(sources)}"
        )
    return [read_adapter(name, source, config, max_rank) for name, source in sources.items()]


def load_adapters(
    adapters: Sequence[PeftAdapter], config: ModelConfig, operations: Operations
) -> AdapterSet:
    """Read the adapters' tensors onto the device, in the activation dtype.

    Raises:
        ConfigurationError: A tensor of an unsupported dtype, or with NaN or infinity in it.
    """
    loading = _Loading(adapters, config, operations)
    return AdapterSet(
        names=tuple(adapter.name for adapter in adapters),
        layers=tuple(loading.layer(index) for index in range(config.num_layers)),
    )


class _Loading:
    def __init__(
        self, adapters: Sequence[PeftAdapter], config: ModelConfig, operations: Operations
    ) -> None:
        self._adapters = adapters
        self._readers = [
            TensorReader(
                {entry.name: entry for m in adapter.modules.values() for entry in (m.down, m.up)},
                operations.device,
            )
            for adapter in adapters
        ]
        self._config = config
        self._operations = operations

    def layer(self, index: int) -> LayerUpdates:
        config = self._config
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        hidden, inner = config.hidden_size, config.intermediate_size
        return LayerUpdates(
            qkv=self._stack(
                {
                    attention + "q_proj": config.q_size,
                    attention + "k_proj": config.kv_size,
                    attention + "v_proj": config.kv_size,
                },
                hidden,
            ),
            output=self._stack({attention + "o_proj": hidden}, config.q_size),
            gate_up=self._stack({mlp + "gate_proj": inner, mlp + "up_proj": inner}, hidden),
            down=self._stack({mlp + "down_proj": hidden}, inner),
        )

    def _stack(self, widths: Mapping[str, int], in_features: int) -> LowRankStack | None:
        if not any(module in adapter.modules for adapter in self._adapters for module in widths):
            return None
        return LowRankStack.build(
            [
                [self._update(adapter, reader, module) for module in widths]
                for adapter, reader in zip(self._adapters, self._readers, strict=True)
            ],
            list(widths.values()),
            in_features,
            self._operations.activation_dtype,
            self._operations.device,
        )

    def _update(
        self, adapter: PeftAdapter, reader: TensorReader, module: str
    ) -> LowRankUpdate | None:
        found = adapter.modules.get(module)
        if found is None:
            return None

        def read(name: str) -> torch.Tensor:
            try:
                return reader.read_vector(name, self._operations.activation_dtype)
            except ConfigurationError as error:
                raise ConfigurationError(f"adapter `{adapter.name}`: {error}") from None

        return LowRankUpdate(read(found.down.name), read(found.up.name), found.scale)
