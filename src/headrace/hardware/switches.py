"""Environment switches that turn one technique off, to compare or to find a fault.

``HEADRACE_<NAME>`` is ``on`` (the default) or ``off``.
"""

from __future__ import annotations

import os

from headrace.link.errors import ConfigurationError

SWITCHES = {
    "OVERLAP": "plan and launch a step while the one before runs",
    "GRAPHS": "replay captured CUDA or HIP graphs",
    "DEPENDENT_LAUNCH": "let a kernel start while its predecessor ends (Hopper and later)",
    "TUNED_GEMM": "measure how to compute linears; off: the vendor library alone, a CPU's defaults",
}


def is_on(name: str) -> bool:
    """Whether a technique of ``SWITCHES`` is to be used.

    Raises:
        ConfigurationError: The variable has another value than ``on`` or ``off``.
    """
    if name not in SWITCHES:
        raise KeyError(name)
    variable = f"HEADRACE_{name}"
    value = os.environ.get(variable, "on")
    if value not in ("on", "off"):
        raise ConfigurationError(f"{variable} must be on or off, got `{value}`")
    return value == "on"
