"""``headrace doctor``: every section is told, and what breaks is told instead of breaking it."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from headrace.cli.diagnosis import backends, drivers, machine, native_extension, probe, rates
from headrace.cli.main import main
from headrace.hardware import rates as measuring


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main(["doctor", *arguments])
    return end.value.code, capsys.readouterr().out


def test_everything_a_bug_report_needs_is_told(capsys, monkeypatch):
    monkeypatch.setenv("HEADRACE_COMMIT", "abc123")
    monkeypatch.setenv("HF_TOKEN", "never shown")
    status, out = doctor(capsys, "--json")
    told = json.loads(out)
    assert status == 0
    assert set(told) == {
        "Machine",
        "Versions",
        "Optional libraries",
        "Environment",
        "GPUs and drivers",
        "Native kernels",
        "Measured",
        "Backends",
    }
    assert told["Versions"]["headrace"].endswith("commit abc123")
    assert told["Versions"]["torch"] == torch.__version__
    assert told["Environment"]["HEADRACE_COMMIT"] == "abc123"
    assert "HF_TOKEN" in told["Environment"]
    assert "never shown" not in out
    assert told["Optional libraries"]["peft"][0].isdigit()
    copy = told["Measured"]["cpu copy"]
    assert copy.endswith("GB/s")
    assert 0.1 < float(copy.split()[0]) < 5000
    assert any(name.startswith("cpu matmul bfloat16") for name in told["Measured"])
    assert {backend["name"] for backend in told["Backends"]} >= {"torch", "native", "triton"}


def test_a_broken_section_says_so_and_the_others_go_on(capsys, monkeypatch):
    def broken() -> list[tuple[str, str]]:
        raise RuntimeError("no such sensor")

    monkeypatch.setattr(machine, "describe_machine", broken)
    monkeypatch.setattr(backends, "find_backends", lambda: [backends.Backend("torch", True, "")])
    status, out = doctor(capsys, "--no-measure", "--json")
    told = json.loads(out)
    assert status == 0
    assert told["Machine"] == {"failed": "RuntimeError: no such sensor"}
    assert "Python" in told["Versions"]


def test_without_a_working_backend_the_exit_status_is_1(capsys, monkeypatch):
    monkeypatch.setattr(backends, "json_lines", _fail)
    status, out = doctor(capsys, "--no-measure")
    assert status == 1
    assert "importing it: it ended the process: killed" in out


def _fail(module: str, seconds: float) -> list[str]:
    raise probe.ProbeFailed("it ended the process: killed")


def test_processes_that_die_are_reported(monkeypatch):
    monkeypatch.setattr(rates, "json_lines", _fail)
    monkeypatch.setattr(native_extension, "json_lines", _fail)
    assert rates.find_rates() == [("measurement", "failed: it ended the process: killed")]
    ((name, value),) = native_extension.describe_native_extension()
    assert (name, value) == ("native extension", "not usable: it ended the process: killed")


def test_a_probe_reports_death_and_silence(monkeypatch):
    with pytest.raises(probe.ProbeFailed, match="No module named"):
        probe.json_lines("headrace.nothing", 60)

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 3)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(probe.ProbeFailed, match="longer than 3 s"):
        probe.json_lines("headrace.hardware.rates", 3)


def test_a_driver_tool_that_fails_is_reported(monkeypatch):
    def answer(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if command[0] == "rocm-smi":
            raise FileNotFoundError
        return subprocess.CompletedProcess(command, 9, "", "couldn't communicate with the driver\n")

    monkeypatch.setattr(subprocess, "run", answer)
    assert drivers.describe_drivers() == [
        ("nvidia-smi", "failed: couldn't communicate with the driver"),
        ("rocm-smi", "not installed"),
    ]


def test_a_figure_that_cannot_be_measured_says_why(monkeypatch):
    def out_of_memory(*_: object) -> float:
        raise RuntimeError("not enough memory\nsecond line")

    monkeypatch.setattr(measuring, "_copy", out_of_memory)
    monkeypatch.setattr(measuring, "_SECONDS_EACH", 0.01)
    monkeypatch.setattr(measuring, "_CPU_SIZE", 64)
    threads = torch.get_num_threads()
    try:
        copy, *products = measuring.measure_rates(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    assert (copy.value, copy.failure) == (None, "not enough memory")
    assert all(product.value is not None and product.value > 0 for product in products)
