"""What records say of the device that torch computes on."""

from __future__ import annotations

import resource
from dataclasses import dataclass

import torch

from headrace.benchmark.provenance import gpu_driver, versions_of
from headrace.hardware.processor import processor


@dataclass(frozen=True, slots=True)
class MeasuredDevice:
    """A GPU, or the processor."""

    device: torch.device

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """What the driver calls the GPU, or the processor and its number of CPUs."""
        return torch.cuda.get_device_name(self.device) if self.on_gpu else processor()

    @property
    def driver(self) -> str | None:
        """Version of the GPU's kernel driver."""
        return gpu_driver() if self.on_gpu else None

    def versions(self) -> dict[str, str]:
        """Versions of what the figures depend on, the GPU's runtime among them."""
        versions = versions_of("torch", "triton", "numpy")
        if self.on_gpu:
            versions["runtime"] = str(torch.version.hip or torch.version.cuda)
        return versions

    def peak_bytes(self) -> int:
        """Most memory this process has held: reserved by torch on a GPU, else its resident set."""
        if self.on_gpu:
            return torch.cuda.max_memory_reserved(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
