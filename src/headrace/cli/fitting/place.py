"""On which device: one known by name, or this machine's own."""

from __future__ import annotations

import msgspec

from headrace.hardware.known_devices import KNOWN_DEVICES
from headrace.link.errors import ConfigurationError

THIS_MACHINE = ("auto", "cpu", "cuda")


class Place(msgspec.Struct, frozen=True):
    """A device to plan for.

    Attributes:
        title: For people.
        memory_bytes: That programs can have.
        source: Where that figure is from.
    """

    title: str
    memory_bytes: int
    source: str
    on_gpu: bool


def find_place(name: str, memory_bytes: int | None = None) -> Place:
    """The device of this name; ``auto``, ``cpu`` and ``cuda`` are this machine's.

    Args:
        name: As the user wrote it.
        memory_bytes: In place of what is known or found.

    Raises:
        ConfigurationError: no such device, saying which there are; no GPU here.
    """
    known = KNOWN_DEVICES.get(name.lower())
    if known is None and name not in THIS_MACHINE:
        raise ConfigurationError(
            f"--device `{name}` is not known; there are {', '.join(KNOWN_DEVICES)}, and "
            f"{', '.join(THIS_MACHINE)} for this machine (or give --memory)"
        )
    if known is not None:
        place = Place(known.title, known.memory_bytes, known.source, on_gpu=True)
    else:
        place = _here(name)
    if memory_bytes is not None:
        place = msgspec.structs.replace(place, memory_bytes=memory_bytes, source="--memory")
    return place


def _here(name: str) -> Place:
    # Only where this machine is meant: torch takes a second to import.
    import torch

    from headrace.hardware.device import resolve_device
    from headrace.hardware.memory import available_bytes

    device = resolve_device(name)
    if device.type == "cpu":
        left = available_bytes(device)
        return Place("this machine's CPU", left, "available now", on_gpu=False)
    free, total = torch.cuda.mem_get_info(device)
    title = torch.cuda.get_device_name(device)
    return Place(title, total, f"{free / 2**30:.1f} GiB of it free now", on_gpu=True)
