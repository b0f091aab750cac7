"""Models from the Hugging Face hub, through ``huggingface_hub``'s own cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from headrace.link.errors import ConfigurationError

_MODEL = re.compile(r"(?!\.)[\w.-]{1,96}(/(?!\.)[\w.-]{1,96})?")
_FILE = re.compile(rf"(?P<model>{_MODEL.pattern})/(?P<file>[\w.-]+\.gguf)")
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja"]


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/model`` or ``owner/model/file.gguf``."""
    if name.endswith(".gguf"):
        return _FILE.fullmatch(name) is not None and name.count("/") == 2
    return _MODEL.fullmatch(name) is not None


def download(name: str, revision: str | None) -> Path:
    """The local directory or GGUF file of a model, downloaded where the cache does not have it.

    A repository without safetensors gives its GGUF file if it holds only one. Without a network
    the cached copy is used as it is.

    Raises:
        ConfigurationError: Unknown or gated model, unknown revision, several GGUF files, or no
            network and no copy.
    """
    import huggingface_hub

    file = _FILE.fullmatch(name)
    if file is not None:
        return _fetch(name, revision, _file_fetcher(file["model"], file["file"], revision))

    def snapshot(offline: bool) -> str:
        return huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=_PATTERNS, local_files_only=offline
        )

    directory = _fetch(name, revision, snapshot)
    if any(directory.glob("*.safetensors*")):
        return directory
    ggufs = _gguf_names(name, revision, directory)
    if len(ggufs) > 1:
        raise ConfigurationError(
            f"model `{name}`: several GGUF files; name one, as in `{name}/{ggufs[0]}`"
        )
    if not ggufs:
        return directory
    return _fetch(name, revision, _file_fetcher(name, ggufs[0], revision))


def _file_fetcher(model: str, file: str, revision: str | None) -> Callable[[bool], str]:
    import huggingface_hub

    def fetch(offline: bool) -> str:
        return huggingface_hub.hf_hub_download(
            model, file, revision=revision, local_files_only=offline
        )

    return fetch


def _gguf_names(model: str, revision: str | None, directory: Path) -> list[str]:
    import huggingface_hub

    try:
        names = huggingface_hub.list_repo_files(model, revision=revision)
    except Exception:  # no network: what the cache has
        names = [path.name for path in directory.glob("*.gguf")]
    return sorted(name for name in names if name.endswith(".gguf"))


def _fetch(name: str, revision: str | None, fetch: Callable[[bool], str]) -> Path:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(fetch(False))
    except GatedRepoError:
        reason = "access is restricted: accept its terms on the hub and set HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"the model has no revision {revision!r}"
    except RepositoryNotFoundError:
        reason = "no such model on the hub, and no such path on this machine"
    except LocalEntryNotFoundError:
        reason = "no such path on this machine, and the hub cannot be reached"
    except EntryNotFoundError:
        reason = "the model has no such file"
    except Exception as unreachable:  # network libraries raise many kinds
        try:
            return Path(fetch(True))
        except Exception:
            reason = f"no such path, and the hub cannot be reached ({_first_line(unreachable)})"
    raise ConfigurationError(f"model `{name}`: {reason}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
