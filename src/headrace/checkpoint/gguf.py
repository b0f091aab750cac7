"""The metadata and tensor directory of a GGUF file (versions 2 and 3), read through a memory map.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and length in the
file is held against the file's size before it is believed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.link.errors import ConfigurationError

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_STRING = 8
_ARRAY = 9
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_MAX_DIMENSIONS = 4
_MIN_KEY_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8

# GGUF type number: name, elements in a block, bytes of a block.
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor as the file names it: shape slowest dimension first, offset within the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _ArrayPlace:
    element: int
    count: int
    offset: int


class _Malformed(Exception):
    """What is wrong with the file, without its name."""


class GGUFFile:
    """A GGUF file's key-value metadata and tensor directory; tensor data is never touched.

    Arrays are decoded when asked for: who needs no vocabulary does not pay for one.

    Raises:
        ConfigurationError: The file cannot be read or is malformed; names the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{path}: cannot be read as GGUF ({error})") from error
        try:
            self._parse()
        except (struct.error, OverflowError):  # an offset beyond the file, or beyond any file
            raise ConfigurationError(f"{path}: the GGUF header is truncated") from None
        except UnicodeDecodeError:
            raise ConfigurationError(
                f"{path}: the GGUF header holds text that is not UTF-8"
            ) from None
        except _Malformed as error:
            raise ConfigurationError(f"{path}: malformed GGUF: {error}") from None

    @property
    def tensors(self) -> Mapping[str, GGUFTensor]:
        """All tensors under the file's own names."""
        return self._tensors

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """A scalar or string; arrays through ``array``."""
        value = self._values.get(key, default)
        if isinstance(value, _ArrayPlace):
            raise ConfigurationError(
                f"{self.path}: `{key}` is an array where one value is expected"
            )
        return value

    def array(self, key: str) -> list[Any]:
        """All elements of an array, or an empty list where there is none.

        Raises:
            ConfigurationError: The key holds a single value, or text that is not UTF-8.
        """
        place = self._values.get(key)
        if place is None:
            return []
        if not isinstance(place, _ArrayPlace):
            raise ConfigurationError(
                f"{self.path}: `{key}` is one value where an array is expected"
            )
        if place.element == _STRING:
            try:
                return self._strings(place)
            except UnicodeDecodeError:
                raise ConfigurationError(
                    f"{self.path}: `{key}` holds text that is not UTF-8"
                ) from None
        scalar = _SCALARS[place.element]
        block = self._data[place.offset : place.offset + place.count * scalar.size]
        return [value for (value,) in scalar.iter_unpack(block)]

    def read(self, tensor: GGUFTensor) -> bytes:
        """The bytes of one (small) tensor."""
        return self._data[tensor.offset : tensor.offset + tensor.nbytes]

    def _parse(self) -> None:
        size = len(self._data)
        if self._data[:4] != b"GGUF":
            raise _Malformed("it does not begin with `GGUF`")
        (version,) = _U32.unpack_from(self._data, 4)
        if version not in (2, 3):
            raise _Malformed(f"version {version}; versions 2 and 3 (little-endian) are supported")
        (tensor_count,) = _U64.unpack_from(self._data, 8)
        (key_count,) = _U64.unpack_from(self._data, 16)
        if key_count * _MIN_KEY_BYTES + tensor_count * _MIN_TENSOR_BYTES > size:
            raise _Malformed(
                f"{key_count} keys and {tensor_count} tensors do not fit into {size} bytes"
            )
        position = 24
        self._values: dict[str, Any] = {}
        for _ in range(key_count):
            key, position = self._string(position)
            (kind,) = _U32.unpack_from(self._data, position)
            value, position = self._value(kind, position + 4, key)
            if key in self._values:
                raise _Malformed(f"key `{key}` occurs twice")
            self._values[key] = value
        self._parse_tensors(tensor_count, position)

    def _string(self, position: int) -> tuple[str, int]:
        (length,) = _U64.unpack_from(self._data, position)
        start = position + 8
        end = start + length
        if end > len(self._data):
            raise _Malformed(f"a string of {length} bytes reaches beyond the end of the file")
        return self._data[start:end].decode("utf-8"), end

    def _value(self, kind: int, position: int, key: str) -> tuple[Any, int]:
        if kind == _STRING:
            return self._string(position)
        if kind == _ARRAY:
            return self._array_place(position, key)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise _Malformed(f"key `{key}` has the unknown value type {kind}")
        (value,) = scalar.unpack_from(self._data, position)
        return value, position + scalar.size

    def _array_place(self, position: int, key: str) -> tuple[_ArrayPlace, int]:
        (element,) = _U32.unpack_from(self._data, position)
        (count,) = _U64.unpack_from(self._data, position + 4)
        position += 12
        place = _ArrayPlace(element, count, position)
        remaining = len(self._data) - position
        if element == _STRING:
            if count * 8 > remaining:
                raise _Malformed(f"array `{key}` of {count} strings does not fit into the file")
            return place, self._skip_strings(position, count)
        scalar = _SCALARS.get(element)
        if scalar is None:
            raise _Malformed(f"array `{key}` has the unsupported element type {element}")
        if count * scalar.size > remaining:
            raise _Malformed(f"array `{key}` of {count} elements does not fit into the file")
        return place, position + count * scalar.size

    def _skip_strings(self, position: int, count: int) -> int:
        data = self._data
        unpack = _U64.unpack_from
        for _ in range(count):
            position += 8 + unpack(data, position)[0]
        if position > len(data):
            raise _Malformed("a string reaches beyond the end of the file")
        return position

    def _strings(self, place: _ArrayPlace) -> list[str]:
        data = self._data
        unpack = _U64.unpack_from
        position = place.offset
        strings = []
        for _ in range(place.count):
            start = position + 8
            position = start + unpack(data, position)[0]
            strings.append(data[start:position].decode())
        return strings

    def _parse_tensors(self, count: int, position: int) -> None:
        alignment = self.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise _Malformed(f"general.alignment is {alignment!r}, not a power of two")
        directory = []
        for _ in range(count):
            name, position = self._string(position)
            (rank,) = _U32.unpack_from(self._data, position)
            if not 1 <= rank <= _MAX_DIMENSIONS:
                raise _Malformed(f"tensor `{name}` has {rank} dimensions")
            dimensions = struct.unpack_from(f"<{rank}Q", self._data, position + 4)
            position += 4 + 8 * rank
            (kind,) = _U32.unpack_from(self._data, position)
            (offset,) = _U64.unpack_from(self._data, position + 4)
            position += 12
            directory.append((name, kind, tuple(reversed(dimensions)), offset))
        start = -(-position // alignment) * alignment
        self._tensors: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset in directory:
            if name in self._tensors:
                raise _Malformed(f"tensor `{name}` occurs twice")
            self._tensors[name] = self._tensor(name, kind, shape, start + offset)
        self._refuse_overlaps()

    def _tensor(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> GGUFTensor:
        block = BLOCKS.get(kind)
        if block is None:
            raise _Malformed(f"tensor `{name}` has the unsupported type number {kind}")
        type_name, block_elements, block_bytes = block
        if 0 in shape or shape[-1] % block_elements:
            raise _Malformed(f"tensor `{name}` of type {type_name} cannot have the shape {shape}")
        elements = 1
        for dimension in shape:
            elements *= dimension
        nbytes = elements // block_elements * block_bytes
        if offset + nbytes > len(self._data):
            raise _Malformed(
                f"tensor `{name}` reaches beyond the end of the file: it is truncated or corrupt"
            )
        return GGUFTensor(name, type_name, shape, offset, nbytes)

    def _refuse_overlaps(self) -> None:
        end = 0
        for tensor in sorted(self._tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise _Malformed(f"tensor `{tensor.name}` overlaps another")
            end = tensor.offset + tensor.nbytes
