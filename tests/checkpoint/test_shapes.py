"""Built-in shapes: the published parameter counts, and the way through config.json and back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from headrace.checkpoint.builtin import gguf_path
from headrace.checkpoint.config import RopeScaling
from headrace.checkpoint.config_json import config_json
from headrace.checkpoint.gguf_checkpoint import GGUFCheckpoint
from headrace.checkpoint.hf_config import hf_config
from headrace.checkpoint.shapes import find_shape, shape, shape_names
from headrace.checkpoint.sizes import parameter_count
from headrace.link.errors import ConfigurationError

# As the models' safetensors metadata on the hub count them.
PUBLISHED = {
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-1b": 1_235_814_400,
    "llama3-3b": 3_212_749_824,
    "llama3-405b": 405_853_388_800,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name: str) -> None:
    assert parameter_count(shape(name)) == PUBLISHED[name]


@pytest.mark.parametrize("name", shape_names())
def test_config_json_describes_the_same_architecture(name: str) -> None:
    assert hf_config(config_json(shape(name)), Path("config.json")) == shape(name)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_config_json_keeps_rotary_scaling(kind: str) -> None:
    scaling = RopeScaling(kind=kind, factor=4.0, original_max_position=8192)
    config = msgspec.structs.replace(shape("qwen3-8b"), rope_scaling=scaling, max_position=32768)
    read = hf_config(config_json(config), Path("config.json"))
    assert (read.max_position, read.rope_scaling.kind, read.rope_scaling.factor) == (
        32768,
        kind,
        4.0,
    )


def test_config_json_keeps_sliding_layers() -> None:
    config = msgspec.structs.replace(
        shape("qwen2.5-7b"), sliding_window=4096, sliding_layers=(3, 27)
    )
    assert hf_config(config_json(config), Path("config.json")) == config


def test_the_built_in_model_has_the_shape_of_its_name() -> None:
    read = GGUFCheckpoint("built in", gguf_path()).config
    named = shape("smollm2-135m")
    for field in ("hidden_size", "num_layers", "kv_size", "vocab_size", "tie_word_embeddings"):
        assert getattr(read, field) == getattr(named, field)


def test_names_are_found_in_any_case_and_others_are_refused_with_the_list() -> None:
    assert find_shape("Llama3-8B") == shape("llama3-8b")
    assert find_shape("llama4") is None
    with pytest.raises(ConfigurationError, match=r"`llama4`; there are llama3-8b, .*qwen3-32b"):
        shape("llama4")
