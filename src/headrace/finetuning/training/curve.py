"""The loss curve of a run as a PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_loss_curve(history: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw training and held-out loss over steps.

    Args:
        history: The trainer's log: ``step`` with ``loss`` or ``eval_loss``.
        path: The file to write.

    Returns:
        Whether there was anything to draw.
    """
    curves = {
        label: [(entry["step"], entry[key]) for entry in history if key in entry]
        for key, label in (("loss", "training"), ("eval_loss", "held out"))
    }
    if not any(curves.values()):
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for (label, points), marker in zip(curves.items(), ("", "o"), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True
