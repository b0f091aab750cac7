"""The tensors of a directory of safetensors files, from their headers alone.

Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from headrace.checkpoint.tensors import TensorEntry
from headrace.link.errors import ConfigurationError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def safetensors_entries(directory: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in ``directory``, which is one file or sharded with an index.

    Raises:
        ConfigurationError: No safetensors, a missing shard, or a malformed or truncated file; one
            line that names the file.
    """
    index = directory / INDEX_FILE
    single = directory / SINGLE_FILE
    if index.is_file():
        return _sharded(index)
    if single.is_file():
        return read_header(single)
    candidates = sorted(directory.glob("*.safetensors"))
    if len(candidates) == 1:
        return read_header(candidates[0])
    if candidates:
        raise ConfigurationError(
            f"{directory}: several safetensors files and no {INDEX_FILE} that joins them"
        )
    pickles = sorted(name for pattern in _PICKLES for name in directory.glob(pattern))
    if pickles:
        raise ConfigurationError(
            f"{pickles[0]}: pickle files can run code and are never opened; "
            "headrace reads safetensors and GGUF only"
        )
    raise ConfigurationError(
        f"{directory}: no weights; expected {SINGLE_FILE}, {INDEX_FILE} and shards, or a GGUF file"
    )


def _sharded(index: Path) -> dict[str, TensorEntry]:
    try:
        weight_map = msgspec.json.decode(index.read_bytes())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, msgspec.MsgspecError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"{index}: not a safetensors index ({error!r})") from None
    entries: dict[str, TensorEntry] = {}
    for shard in shards:
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or shard.startswith("."):
            raise ConfigurationError(f"{index}: shard name {shard!r} is not a plain file name")
        path = index.parent / shard
        if not path.is_file():
            raise ConfigurationError(f"{path}: shard is missing (named in {index.name})")
        entries.update(read_header(path))
    for name, shard in weight_map.items():
        if name not in entries or entries[name].path.name != shard:
            raise ConfigurationError(f"{index.parent / shard}: tensor `{name}` is not in the shard")
    return entries


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file.

    Raises:
        ConfigurationError: Wrong or truncated header, or offsets outside the file or overlapping.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ConfigurationError(f"{path}: truncated, or not a safetensors file")
            header = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: malformed safetensors header ({error})") from None
    header.pop("__metadata__", None)
    start = 8 + length
    entries = {}
    end_of_previous = 0
    spans = {name: _span(path, name, fields) for name, fields in header.items()}
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin < end_of_previous:
            raise ConfigurationError(f"{path}: tensor `{name}` overlaps another")
        if start + end > size:
            raise ConfigurationError(
                f"{path}: truncated: tensor `{name}` ends at byte {start + end} of {size}"
            )
        end_of_previous = end
        shape = tuple(header[name]["shape"])
        entries[name] = TensorEntry(
            name, path, start + begin, end - begin, header[name]["dtype"], shape
        )
    return entries


def _span(path: Path, name: str, fields: dict[str, Any]) -> tuple[int, int]:
    dtype: Any = fields.get("dtype")
    shape: Any = fields.get("shape")
    offsets: Any = fields.get("data_offsets")
    if dtype not in _ITEM_BYTES:
        raise ConfigurationError(f"{path}: tensor `{name}` has the unsupported dtype {dtype!r}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise ConfigurationError(f"{path}: tensor `{name}` has a malformed shape or offsets")
    nbytes = _ITEM_BYTES[dtype]
    for dimension in shape:
        nbytes *= dimension
    begin, end = offsets
    if end - begin != nbytes:
        raise ConfigurationError(
            f"{path}: tensor `{name}` of shape {tuple(shape)} in {dtype} needs {nbytes} bytes, "
            f"its offsets span {end - begin}"
        )
    return begin, end


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )
