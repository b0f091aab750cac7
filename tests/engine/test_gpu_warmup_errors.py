"""What a GPU's warmup refuses and what it advises; the device is a faked record."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from headrace.checkpoint.shapes import shape
from headrace.engine.limits import GIB, BatchLimits
from headrace.engine.memory_errors import check_weights_fit, explain_out_of_memory
from headrace.engine.tune_gemm import TunedGemm, tune_gemm
from headrace.hardware.switches import SWITCHES, is_on
from headrace.link.errors import ConfigurationError

GPU = torch.device("cuda", 0)


def pretend_free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr("headrace.engine.memory_errors.available_bytes", lambda _: int(gib * GIB))


def test_model_that_does_not_fit_says_what_it_needs_and_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = SimpleNamespace(config=shape("llama3-8b"))
    pretend_free(monkeypatch, 15.5)
    check_weights_fit(checkpoint, "bfloat16", GPU)  # type: ignore[arg-type]
    pretend_free(monkeypatch, 9.0)
    with pytest.raises(ConfigurationError, match=r"14\.96 GiB .* 9\.00 GiB .*--model-id"):
        check_weights_fit(checkpoint, "bfloat16", GPU)  # type: ignore[arg-type]
    check_weights_fit(checkpoint, "bfloat16", torch.device("cpu"))  # type: ignore[arg-type]


def test_out_of_memory_in_warmup_names_the_limits_to_lower() -> None:
    batch = BatchLimits(token_budget=8192, max_batch_size=256, max_total_tokens=4096)
    with (
        pytest.raises(
            ConfigurationError,
            match=r"--max-batch-prefill-tokens \(8192\).*--max-batch-size \(256\)",
        ),
        explain_out_of_memory(batch),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="other"), explain_out_of_memory(batch):
        raise RuntimeError("other")


def test_gemms_are_not_tuned_where_there_is_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"native kernels on a CPU; here is torch .*16"):
        tune_gemm(shape("smollm2-135m"), "float16")
    monkeypatch.setenv("HEADRACE_TUNED_GEMM", "off")
    with pytest.raises(ConfigurationError, match="HEADRACE_TUNED_GEMM is off"):
        tune_gemm(shape("smollm2-135m"))


def test_gain_is_the_share_of_the_library_time_that_is_saved() -> None:
    tuned = TunedGemm(1, 1, 1, "gemv", microseconds=9.0, library_microseconds=10.0)
    assert tuned.gain == pytest.approx(0.1)


@pytest.mark.parametrize("name", SWITCHES)
def test_switches_are_on_unless_turned_off(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_on(name)
    monkeypatch.setenv(f"HEADRACE_{name}", "off")
    assert not is_on(name)
    monkeypatch.setenv(f"HEADRACE_{name}", "0")
    with pytest.raises(ConfigurationError, match=f"HEADRACE_{name} must be on or off, got `0`"):
        is_on(name)
