"""Models from the Hugging Face hub, through ``huggingface_hub``'s own cache."""

from __future__ import annotations

import re
from pathlib import Path

from headrace.link.errors import ConfigurationError

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.gguf", "tokenizer.model", "*.txt"]


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form ``owner/model`` (or one old-style word)."""
    return _HUB_ID.fullmatch(name) is not None and not name.startswith(("/", ".", "~"))


def download(model_id: str, revision: str | None) -> Path:
    """The local snapshot of a model, downloaded where it is not complete in the cache.

    Without a network the cached snapshot is used as it is.

    Raises:
        ConfigurationError: Unknown or gated model, unknown revision, or no network and no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=_PATTERNS))
    except GatedRepoError:
        reason = "access is restricted: accept its terms on the hub and set HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"the model has no revision {revision!r}"
    except RepositoryNotFoundError:
        reason = "no such model on the hub, and no such path on this machine"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached and the model is not in the local cache"
    except Exception as unreachable:  # network libraries raise many kinds
        try:
            return Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    allow_patterns=_PATTERNS,
                    local_files_only=True,
                )
            )
        except Exception:
            reason = f"the hub cannot be reached ({_first_line(unreachable)}), and no cached copy"
    raise ConfigurationError(f"model `{model_id}`: {reason}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
