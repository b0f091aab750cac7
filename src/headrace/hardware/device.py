"""What a device is and what it can do: code asks for capabilities, never for a vendor."""

from __future__ import annotations

import torch

from headrace.link.errors import ConfigurationError

DEVICES = ("auto", "cpu", "cuda")


def resolve_device(name: str) -> torch.device:
    """The device that a user names; ``auto`` is a GPU where torch finds one, else the CPU.

    Raises:
        ConfigurationError: an unknown name, or no GPU where one was asked for.
    """
    if name not in DEVICES:
        raise ConfigurationError(f"--device must be one of {', '.join(DEVICES)}, got `{name}`")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = "torch finds no GPU" if built else "this build of torch has no GPU support"
        raise ConfigurationError(f"--device cuda: {why}")
    return torch.device("cuda", torch.cuda.current_device())
