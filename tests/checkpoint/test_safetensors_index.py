"""safetensors headers and shards: what is found, and what is refused by the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headrace.checkpoint.safetensors_index import read_header, safetensors_entries
from headrace.link.errors import ConfigurationError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones((4,), np.float16),
    "c": np.zeros((0, 3), np.float32),
}


def _raw(path: Path, header: object, body: bytes = bytes(64)) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + body)
    return path


def test_single_file(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    entries = safetensors_entries(tmp_path)
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: array.shape for name, array in ARRAYS.items()
    }
    assert (entries["a"].dtype, entries["b"].dtype) == ("F32", "F16")
    for name, array in ARRAYS.items():
        entry = entries[name]
        with open(entry.path, "rb") as file:
            file.seek(entry.offset)
            assert file.read(entry.nbytes) == array.tobytes()


def _shards(directory: Path) -> dict[str, str]:
    save_file({"a": ARRAYS["a"]}, directory / "model-1.safetensors")
    save_file({"b": ARRAYS["b"]}, directory / "model-2.safetensors")
    return {"a": "model-1.safetensors", "b": "model-2.safetensors"}


def _index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(tmp_path):
    _index(tmp_path, _shards(tmp_path))
    entries = safetensors_entries(tmp_path)
    assert entries["a"].path.name == "model-1.safetensors"
    assert entries["b"].path.name == "model-2.safetensors"


def test_missing_shard(tmp_path):
    _index(tmp_path, _shards(tmp_path))
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"model-2\.safetensors: shard is missing"):
        safetensors_entries(tmp_path)


def test_tensor_missing_from_its_shard(tmp_path):
    _index(tmp_path, {**_shards(tmp_path), "z": "model-2.safetensors"})
    with pytest.raises(ConfigurationError, match=r"`z` is not in the shard"):
        safetensors_entries(tmp_path)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": null}']
)
def test_malformed_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigurationError, match=r"index\.json"):
        safetensors_entries(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", ".hidden"])
def test_a_shard_outside_the_directory_is_refused(tmp_path, name):
    _index(tmp_path, {"a": name})
    with pytest.raises(ConfigurationError, match="plain file name"):
        safetensors_entries(tmp_path)


def _tensor(dtype="F32", shape=(4,), offsets=(0, 16)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{{{", "malformed"),
        (b"[1]", "malformed"),
        (b"\xff\xff", "malformed"),
        ({"t": _tensor(dtype="F3")}, "unsupported dtype 'F3'"),
        ({"t": {}}, "unsupported dtype"),
        ({"t": _tensor(shape=(-4,))}, "malformed shape"),
        ({"t": _tensor(offsets=(0, 16, 32))}, "malformed shape"),
        ({"t": _tensor(offsets=(0, 12))}, "needs 16 bytes"),
        ({"t": _tensor(offsets=(16, 0))}, "needs 16 bytes"),
        ({"t": _tensor(shape=(2**40, 2**40))}, "needs"),
        ({"t": _tensor(), "u": _tensor(offsets=(8, 24))}, "overlaps"),
        ({"t": _tensor(offsets=(1000, 1016))}, "truncated"),
    ],
)
def test_wrong_headers(tmp_path, header, reason):
    path = _raw(tmp_path / "bad.safetensors", header)
    with pytest.raises(ConfigurationError, match=rf"bad\.safetensors.*{reason}"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"abc", (2**62).to_bytes(8, "little") + b"{}"])
def test_truncated_header(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigurationError, match=f"{name}.*safetensors and GGUF only"):
        safetensors_entries(tmp_path)


def test_nothing_and_too_much(tmp_path):
    with pytest.raises(ConfigurationError, match="no weights"):
        safetensors_entries(tmp_path)
    _shards(tmp_path)
    with pytest.raises(ConfigurationError, match="several safetensors files"):
        safetensors_entries(tmp_path)
