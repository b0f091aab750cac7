"""A PEFT adapter directory, held against the served model before any tensor is read.

Format: ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT's ``save_pretrained``
writes them (https://huggingface.co/docs/peft/developer_guides/checkpoint).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from headrace.checkpoint import hub
from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.expected_tensors import EMBEDDING, HEAD, expected_tensors
from headrace.checkpoint.hf_config import hf_config
from headrace.checkpoint.safetensors_index import read_header
from headrace.checkpoint.source_files import read_json
from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# What changes the computation beyond scale * B @ A beside a frozen linear.
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "lora_bias": "lora_bias",
    "layer_replication": "layer_replication",
    "trainable_token_indices": "trainable_token_indices",
    "target_parameters": "target_parameters",
    "alora_invocation_tokens": "activated LoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Initializations that leave the base weights as they were.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
_SHAPES = (
    "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class AdaptedModule:
    """One projection's update on disk: ``scale * up @ down``, [rank, K] and [N, rank]."""

    down: TensorEntry
    up: TensorEntry
    scale: float

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """An adapter that fits the served model.

    Attributes:
        base_model: Name of the model that it was trained on, as the adapter says; may be empty.
        modules: Module name, such as ``model.layers.0.self_attn.q_proj``, to its update.
    """

    name: str
    directory: Path
    base_model: str
    modules: Mapping[str, AdaptedModule]

    @property
    def num_parameters(self) -> int:
        """Numbers in all updates together."""
        return sum(
            module.rank * (module.down.shape[1] + module.up.shape[0])
            for module in self.modules.values()
        )


def read_adapter(name: str, source: str, config: ModelConfig, max_rank: int) -> PeftAdapter:
    """Check the adapter in ``source``, a directory or a hub id, against the served model.

    Raises:
        ConfigurationError: No such directory, not a PEFT LoRA adapter, a feature that is not
            supported, a rank above ``max_rank``, or an adapter for another model; one line that
            names the adapter, the value and what was expected.
    """
    return _Reading(name, _locate(name, source), config, max_rank).adapter()


def _locate(name: str, source: str) -> Path:
    directory = Path(source).expanduser()
    if not directory.exists() and hub.is_hub_id(source):
        try:
            return hub.download(source, None)
        except ConfigurationError as error:
            raise ConfigurationError(f"adapter `{name}`: {error}") from None
    if not directory.is_dir():
        kind = "is not a directory" if directory.exists() else "does not exist"
        raise ConfigurationError(
            f"adapter `{name}`: {directory} {kind}; expected a directory with {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}"
        )
    return directory


class _Reading:
    """One adapter on its way to be accepted or refused."""

    def __init__(self, name: str, directory: Path, config: ModelConfig, max_rank: int) -> None:
        self._name = name
        self._directory = directory
        self._model = config
        self._shapes = expected_tensors(config)
        self._max_rank = max_rank
        for file in (CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / file).is_file():
                raise self._refusal(f"{directory} is no PEFT adapter: {file} is missing in it")
        self._config = read_json(directory / CONFIG_FILE)

    def _refusal(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"adapter `{self._name}`: {why}")

    def adapter(self) -> PeftAdapter:
        """The adapter, if it can be served."""
        self._check_features()
        self._check_base()
        return PeftAdapter(self._name, self._directory, self._base_model, self._modules())

    @property
    def _base_model(self) -> str:
        return str(self._config.get("base_model_name_or_path") or "")

    def _trained_on(self) -> str:
        return f"; it was trained on `{self._base_model}`" if self._base_model else ""

    def _check_features(self) -> None:
        config = self._config
        kind = config.get("peft_type")
        if kind != "LORA":
            raise self._refusal(f"peft_type must be LORA, got {kind!r}")
        task = config.get("task_type")
        if task not in (None, "CAUSAL_LM"):
            raise self._refusal(f"task_type must be CAUSAL_LM, got {task!r}")
        for key, feature in _UNSUPPORTED.items():
            if config.get(key):
                raise self._refusal(f"{feature} is not supported ({key} is {config[key]!r})")
        if config.get("bias", "none") != "none":
            raise self._refusal(f"bias must be `none`, got {config['bias']!r}")
        initialization = config.get("init_lora_weights", True)
        if initialization not in _PLAIN_INITIALIZATIONS:
            raise self._refusal(
                f"init_lora_weights {initialization!r} changes the base weights; save it with "
                "`path_initial_model_for_weight_conversion`, which makes it a plain LoRA"
            )

    def _check_base(self) -> None:
        """Where the base model lies on this machine, its shapes must be the served model's."""
        file = Path(self._base_model).expanduser() / "config.json"
        if not self._base_model or not file.is_file():
            return
        try:
            base = hf_config(read_json(file), file)
        except ConfigurationError:
            return
        for field in _SHAPES:
            theirs, ours = getattr(base, field), getattr(self._model, field)
            if theirs != ours:
                raise self._refusal(
                    f"its base model `{self._base_model}` has {field} {theirs}, the model "
                    f"has {ours}"
                )

    def _modules(self) -> dict[str, AdaptedModule]:
        path = self._directory / WEIGHTS_FILE
        entries = read_header(path)
        names = [self._module_of(name) for name in entries]
        modules = {}
        for module in dict.fromkeys(names):
            down = entries.get(_PREFIX + module + _DOWN)
            up = entries.get(_PREFIX + module + _UP)
            if down is None or up is None:
                missing = _DOWN if down is None else _UP
                raise self._refusal(f"{path}: tensor `{_PREFIX}{module}{missing}` is missing")
            modules[module] = self._module(module, down, up)
        if not modules:
            raise self._refusal(f"{path} holds no tensors")
        return modules

    def _module_of(self, tensor: str) -> str:
        for suffix in (_DOWN, _UP):
            if tensor.startswith(_PREFIX) and tensor.endswith(suffix):
                return tensor[len(_PREFIX) : -len(suffix)]
        if "lora_embedding" in tensor:
            raise self._refusal(f"adapters on embeddings are not supported (tensor `{tensor}`)")
        raise self._refusal(
            f"tensor `{tensor}` is not supported; expected names that end in `{_DOWN}` and `{_UP}`"
        )

    def _module(self, module: str, down: TensorEntry, up: TensorEntry) -> AdaptedModule:
        weight = f"{module}.weight"
        if weight in (EMBEDDING, HEAD):
            raise self._refusal(f"adapters on `{module}` are not supported")
        shape = self._shapes.get(weight)
        if shape is None or len(shape) != 2:
            raise self._refusal(f"the model has no linear `{module}`" + self._trained_on())
        for entry in (down, up):
            if len(entry.shape) != 2:
                raise self._refusal(f"tensor `{entry.name}` has shape {entry.shape}, no matrix")
        for entry, expected, text in (
            (down, (down.shape[0], shape[1]), f"(rank, {shape[1]})"),
            (up, (shape[0], down.shape[0]), f"({shape[0]}, rank {down.shape[0]})"),
        ):
            if entry.shape != expected:
                raise self._refusal(
                    f"tensor `{entry.name}` has shape {entry.shape}, the model needs {text}"
                    + self._trained_on()
                )
        rank = down.shape[0]
        configured = self._number("rank_pattern", "r", module)
        if rank != configured:
            raise self._refusal(
                f"tensor `{down.name}` has rank {rank}, {CONFIG_FILE} says {configured:g}"
            )
        if not 1 <= rank <= self._max_rank:
            raise self._refusal(
                f"rank {rank} of `{module}` is above --max-lora-rank {self._max_rank}"
            )
        alpha = self._number("alpha_pattern", "lora_alpha", module)
        return AdaptedModule(
            down, up, alpha / (sqrt(rank) if self._config.get("use_rslora") else rank)
        )

    def _number(self, patterns: str, default: str, module: str) -> float:
        """PEFT's value for one module: that of the first pattern that its name ends in."""
        value: Any = self._config.get(default, 8)
        try:
            for pattern, own in (self._config.get(patterns) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    value = own
                    break
        except (re.error, AttributeError):
            raise self._refusal(
                f"{patterns} must map patterns to numbers, got {self._config[patterns]!r}"
            ) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self._refusal(f"{default} must be a number, got {value!r}")
        return float(value)
