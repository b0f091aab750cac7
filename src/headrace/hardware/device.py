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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether torch has bfloat16 products for a device that are worth using.

    A CPU without AVX-512 or the like multiplies bfloat16 number by number: up to 60 times slower
    than float32. oneDNN, which torch asks, knows.
    """
    asks = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return device.type != "cpu" or asks is None or bool(asks())
