"""Environment variables of the training processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from headrace.finetuning.run_directory import RunDirectory
from headrace.finetuning.settings import FinetuneSettings


def worker_environment(
    settings: FinetuneSettings, directory: RunDirectory, cores: int
) -> Mapping[str, str]:
    """What the libraries read from the environment.

    Args:
        settings: ``device``, ``placement`` and ``processes`` are decided.
        cores: That all processes together may use.
    """
    variables = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TENSORBOARD_LOGGING_DIR": str(directory.logs),
    }
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, cores // (settings.processes or 1)))
    if settings.device == "cpu":
        variables["DS_ACCELERATOR"] = "cpu"
    if settings.deterministic:
        # cuBLAS reads it when its first handle is made.
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return variables
