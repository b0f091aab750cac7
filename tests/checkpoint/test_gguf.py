"""The GGUF reader against the ``gguf`` package, and against broken files."""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.checkpoint.gguf import BLOCKS, GGUFFile
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.link.errors import ConfigurationError


@pytest.fixture(scope="module")
def tiny(write_gguf) -> Path:
    return write_gguf(
        {
            "a.flag": True,
            "a.words": ["one", "zwei", "трі"],
            "a.numbers": [1, 2, 300],
            "a.floats": [0.5, -1.25],
        },
        quantize={"blk.0.ffn_up.weight": gguf.GGMLQuantizationType.Q4_1},
    )


def test_reads_what_the_gguf_package_wrote(tiny):
    ours = GGUFFile(tiny)
    theirs = gguf.GGUFReader(tiny)
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        value = field.contents()
        assert (ours.array(key) if isinstance(value, list) else ours.get(key)) == value
    assert set(ours.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert found.kind == tensor.tensor_type.name
        assert found.shape == tuple(reversed([int(n) for n in tensor.shape]))
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert ours.read(found) == tensor.data.tobytes()


def test_block_sizes_are_the_packages():
    for number, (name, elements, nbytes) in BLOCKS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (elements, nbytes)


def test_builtin_model_is_parsed_quickly(builtin):
    start = time.process_time()
    file = GGUFFile(builtin.path)
    tokens = file.array("tokenizer.ggml.tokens")
    merges = file.array("tokenizer.ggml.merges")
    seconds = time.process_time() - start
    assert (len(tokens), len(merges), len(file.tensors)) == (49152, 48900, 272)
    assert seconds < 0.25


def test_every_truncation_is_refused_in_one_line(tiny, tmp_path):
    whole = tiny.read_bytes()
    header_end = min(tensor.offset for tensor in GGUFFile(tiny).tensors.values())
    path = tmp_path / "cut.gguf"
    cuts = [*range(0, header_end, 7), header_end, (header_end + len(whole)) // 2, len(whole) - 40]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ConfigurationError, match=r"cut\.gguf") as caught:
            GGUFFile(path)
        assert "\n" not in str(caught.value)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_corrupt_bytes_are_refused_or_harmless(tiny, tmp_path, data):
    content = bytearray(tiny.read_bytes())
    header_end = min(tensor.offset for tensor in GGUFFile(tiny).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, header_end - 1))
        content[place] = data.draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
    path = tmp_path / "corrupt.gguf"
    path.write_bytes(content)
    checkpoint = GGUFCheckpoint("corrupt", path)
    # Any other exception, a hang or a huge allocation fails the test.
    with contextlib.suppress(ConfigurationError):
        assert checkpoint.config.num_layers > 0
        assert checkpoint.tensors
        _ = checkpoint.eos_token_ids, checkpoint.special_tokens, checkpoint.chat_templates


def _header(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def _tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"GGUF", "truncated"),
        (b"ONNX" + bytes(100), "does not begin"),
        (_header(0, 0, version=1), "version 1"),
        (_header(0, 0, version=0x03000000), "little-endian"),
        (_header(2**63, 0), "do not fit"),
        (_header(0, 2**63), "do not fit"),
        (_header(0, 1) + struct.pack("<Q", 2**62) + bytes(64), "beyond the end"),
        (_header(0, 1) + _key(b"k", 9, struct.pack("<IQ", 8, 2**61)), "does not fit"),
        (_header(0, 1) + _key(b"k", 9, struct.pack("<IQ", 10, 2**61)), "does not fit"),
        (
            _header(0, 1) + _key(b"k", 9, struct.pack("<IQ", 9, 1)) + bytes(64),
            "unsupported element",
        ),
        (_header(0, 1) + _key(b"k", 77, bytes(8)), "unknown value type"),
        (_header(0, 1) + _key(b"k\xff", 4, bytes(8)), "not UTF-8"),
        (_header(0, 2) + _key(b"k", 4, bytes(4)) * 2, "occurs twice"),
        (_header(0, 1) + _key(b"general.alignment", 4, struct.pack("<I", 3)), "power of two"),
        (_header(1, 0) + _tensor(b"t", (2**40, 2**40), 0, 0), "beyond the end"),
        (_header(1, 0) + _tensor(b"t", (33,), 3, 0) + bytes(99), "cannot have the shape"),
        (_header(1, 0) + _tensor(b"t", (0,), 0, 0) + bytes(99), "cannot have the shape"),
        (_header(1, 0) + _tensor(b"t", (4,), 99, 0) + bytes(99), "unsupported type number"),
        (_header(1, 0) + _tensor(b"t", (1,) * 9, 0, 0) + bytes(99), "9 dimensions"),
        (_header(2, 0) + _tensor(b"t", (4,), 0, 0) * 2 + bytes(99), "occurs twice"),
        (
            _header(2, 0) + _tensor(b"t", (4,), 0, 0) + _tensor(b"u", (4,), 0, 8) + bytes(99),
            "overlaps",
        ),
    ],
)
def test_hostile_headers(tmp_path, content, reason):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=reason):
        GGUFFile(path)


def test_arrays_and_values_are_not_mixed_up(tiny):
    file = GGUFFile(tiny)
    with pytest.raises(ConfigurationError, match="is an array"):
        file.get("a.words")
    with pytest.raises(ConfigurationError, match="is one value"):
        file.array("a.flag")
    assert file.array("a.absent") == []
