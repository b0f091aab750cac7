"""Memory of devices known by name, for planning where no such device is at hand.

What the driver reports as the device's total, which is what a program can have, not the figure on
the data sheet: NVIDIA's as ``nvidia-smi`` shows it (MiB), AMD's as ``rocm-smi --showmeminfo vram``
(bytes). Where no report of a device was at hand, its capacity is the data sheet's, taken as GiB
(memory chips hold powers of two), and said to be.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.link.errors import ConfigurationError

_MIB, _GIB = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """One kind of device.

    Attributes:
        name: As users name it.
        title: As its maker does.
        memory_bytes: That a program can have, before the driver's own context.
        source: Where that figure is from.
    """

    name: str
    title: str
    memory_bytes: int
    source: str


def _reported(name: str, title: str, mib: int) -> KnownDevice:
    return KnownDevice(name, title, mib * _MIB, f"nvidia-smi reports {mib:,} MiB")


def _stated(name: str, title: str, gib: int) -> KnownDevice:
    return KnownDevice(name, title, gib * _GIB, f"data sheet: {gib} GB")


KNOWN_DEVICES: dict[str, KnownDevice] = {
    device.name: device
    for device in (
        KnownDevice(
            "mi300x",
            "AMD Instinct MI300X 192 GB",
            206_141_652_992,
            "rocm-smi reports 206,141,652,992 bytes",
        ),
        _stated("mi325x", "AMD Instinct MI325X 256 GB", 256),
        _stated("mi350x", "AMD Instinct MI350X 288 GB", 288),
        _stated("mi355x", "AMD Instinct MI355X 288 GB", 288),
        # A card of two chiplets, which programs see as two devices.
        _stated("mi250", "AMD Instinct MI250 128 GB, one of its two dies", 64),
        _reported("h100", "NVIDIA H100 SXM 80 GB", 81_559),
        _reported("h200", "NVIDIA H200 SXM 141 GB", 143_771),
        _reported("a100", "NVIDIA A100 SXM 80 GB", 81_920),
        _reported("a100-40g", "NVIDIA A100 SXM 40 GB", 40_960),
        _reported("l40s", "NVIDIA L40S 48 GB", 46_068),
        _reported("l4", "NVIDIA L4 24 GB", 23_034),
        _reported("a10", "NVIDIA A10 24 GB", 23_028),
        _reported("t4", "NVIDIA T4 16 GB", 15_360),
        _stated("rtx4090", "NVIDIA GeForce RTX 4090 24 GB", 24),
        _stated("rtx3090", "NVIDIA GeForce RTX 3090 24 GB", 24),
        _reported("rtx5090", "NVIDIA GeForce RTX 5090 32 GB", 32_607),
    )
}
"""By name."""


def known_device(name: str) -> KnownDevice:
    """The device of this name, in any case of letters.

    Raises:
        ConfigurationError: no such device; lists those that there are.
    """
    found = KNOWN_DEVICES.get(name.lower())
    if found is None:
        raise ConfigurationError(
            f"no device is called `{name}`; there are {', '.join(KNOWN_DEVICES)}"
        )
    return found
