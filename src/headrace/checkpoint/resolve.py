"""From what a user calls a model to a ``Checkpoint``."""

from __future__ import annotations

from pathlib import Path

from headrace.checkpoint import builtin, hub
from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.checkpoint.hf_checkpoint import HuggingFaceCheckpoint
from headrace.link.errors import ConfigurationError


def resolve(model: str | None, revision: str | None = None) -> Checkpoint:
    """Find a model, downloading it where needed; no tensor data is read.

    Args:
        model: Directory in Hugging Face's format, GGUF file or directory that holds one, hub id,
            or ``None`` for the built-in model.
        revision: Branch, tag or commit of a hub id.

    Raises:
        ConfigurationError: One line that says why there is no such model.
    """
    if model is None:
        return GGUFCheckpoint(builtin.MODEL_ID, builtin.gguf_path())
    path = Path(model).expanduser()
    try:
        if path.is_file():
            return _from_file(model, path)
        if path.is_dir():
            return _from_directory(model, path)
    except OSError as error:
        raise ConfigurationError(f"model `{model}`: {error.strerror}") from None
    if not hub.is_hub_id(model):
        raise ConfigurationError(f"model `{model}`: no such file or directory")
    found = hub.download(model, revision)
    if found.is_dir():
        return _from_directory(model, found, sha=found.name)
    return GGUFCheckpoint(model, found, sha=found.parent.name)


def _from_file(model: str, path: Path) -> Checkpoint:
    if path.suffix == ".gguf":
        return GGUFCheckpoint(model, path)
    if path.suffix == ".safetensors":
        raise ConfigurationError(f"model `{model}`: name the directory that holds this file")
    raise ConfigurationError(f"model `{model}`: headrace reads safetensors and GGUF only")


def _from_directory(model: str, path: Path, sha: str | None = None) -> Checkpoint:
    if (path / "config.json").is_file():
        # A repository may hold GGUF files beside its config.json and no safetensors.
        ggufs = sorted(path.glob("*.gguf")) if not any(path.glob("*.safetensors*")) else []
        if not ggufs:
            return HuggingFaceCheckpoint(model, path, sha)
    else:
        ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return GGUFCheckpoint(model, ggufs[0], sha)
    if ggufs:
        names = ", ".join(gguf.name for gguf in ggufs[:8])
        raise ConfigurationError(f"model `{model}`: several GGUF files, name one of {names}")
    raise ConfigurationError(f"model `{model}`: {path} holds neither config.json nor a GGUF file")
