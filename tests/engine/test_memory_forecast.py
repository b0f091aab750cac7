"""The forecast of serving memory against the buffers that an engine really allocates."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.shapes import shape
from headrace.checkpoint.sizes import (
    block_table_bytes,
    kv_bytes_per_token,
    step_buffer_bytes,
    stored_bytes,
)
from headrace.engine.limits import decide_batch
from headrace.engine.memory_forecast import forecast_serving, sampler_bytes
from headrace.engine.settings import EngineSettings
from headrace.link.errors import ConfigurationError
from headrace.modeling.activations import Activations
from headrace.modeling.backends.torch_backend import TorchOperations

GIB = 2**30

# The most that was resident while the cache was filled and every row asked for every filter, and
# then while long prompts asked for the log-probabilities of their tokens.
_ENGINE = r"""
import random, re
from headrace import LLM, SamplingParams
llm = LLM(device="cpu", backend="native", max_batch_total_tokens=8192)
stream = random.Random(0)
prompts = [[stream.randrange(10, 49152) for _ in range(60)] for _ in range(128)]
llm.generate(
    prompts,
    SamplingParams(
        max_new_tokens=4, ignore_eos=True, do_sample=True, temperature=0.7, top_k=50, top_p=0.9,
        typical_p=0.95, repetition_penalty=1.1, frequency_penalty=0.1, presence_penalty=0.1,
        logprobs=True, top_n_tokens=5, seed=0,
    ),
    progress=False,
)
prompts = [[stream.randrange(10, 49152) for _ in range(2000)] for _ in range(1)]
llm.generate(
    prompts,
    SamplingParams(max_new_tokens=4, ignore_eos=True, decoder_input_details=True),
    progress=False,
)
# Not getrusage: its peak begins with that of the process that started this one.
status = open("/proc/self/status").read()
print(1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]))
"""


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen3-0.6b"])
def test_step_buffers_are_those_that_are_allocated(name: str) -> None:
    config = shape(name)
    operations = TorchOperations(torch.device("cpu"), torch.bfloat16)
    allocated = Activations.allocate(config, operations, 96, 32)
    predicted = step_buffer_bytes(
        config, max_tokens=96, max_rows=32, activation_bytes=2, residual_bytes=4
    )
    assert predicted == allocated.num_bytes


def test_a_gpu_sampler_holds_what_is_predicted() -> None:
    pytest.importorskip("triton")
    from headrace.kernels.triton_launch import GpuTraits
    from headrace.modeling.sampling.device_sampler import DeviceSampler

    traits = GpuTraits(132, 228 << 10, dependent_launch=False, wide_matrix_unit=False)
    sampler = DeviceSampler(24, 8192, 2048, 128256, torch.device("meta"), traits)
    held = [*vars(sampler).values(), *sampler._changed, *vars(sampler._most_likely).values()]
    allocated = sum(t.nbytes for t in held if isinstance(t, torch.Tensor) and t.is_meta)
    assert sampler_bytes(24, 128256, 8192) + 4 * 2048 == allocated


def test_the_parts_are_the_limits_times_the_sizes() -> None:
    config = shape("llama3-8b")
    settings = EngineSettings(max_batch_size=64, max_total_tokens=4096)
    forecast = forecast_serving(config, settings, device_bytes=80 * GIB, on_gpu=True)
    parts = {part.name: part.bytes for part in forecast.parts}
    batch = decide_batch(settings, config, on_gpu=True)
    assert forecast.batch == batch
    assert parts["step buffers"] == step_buffer_bytes(
        config, max_tokens=batch.token_budget, max_rows=64, activation_bytes=2, residual_bytes=2
    ) + block_table_bytes(64, 4096, 16)
    assert forecast.token_bytes == kv_bytes_per_token(config, "bfloat16") == 131_072
    # 64 sequences of 4,096 tokens are all that can run: more cache would be of no use.
    assert forecast.cache is not None
    assert forecast.cache.tokens == 64 * 4096


def test_a_cache_that_was_asked_for_and_does_not_fit_is_refused_as_the_engine_would() -> None:
    settings = EngineSettings(max_batch_total_tokens=1_000_000)
    forecast = forecast_serving(shape("llama3-8b"), settings, device_bytes=80 * GIB, on_gpu=True)
    assert forecast.cache is None
    assert forecast.refusal is not None
    assert "--max-batch-total-tokens 1000000 needs 122.07 GiB" in forecast.refusal


def test_tensor_parallel_shards_divide_weights_and_cache() -> None:
    config, settings = shape("llama3-70b"), EngineSettings()
    one = forecast_serving(config, settings, device_bytes=200 * GIB, on_gpu=True)
    four = forecast_serving(config, settings, device_bytes=80 * GIB, on_gpu=True, shards=4)
    assert four.parts[0].bytes == one.parts[0].bytes // 4
    assert four.token_bytes == one.token_bytes // 4
    with pytest.raises(ConfigurationError, match="8 key-value heads cannot be split over 3"):
        forecast_serving(config, settings, device_bytes=GIB, on_gpu=True, shards=3)


def test_a_serving_engine_is_as_large_as_predicted() -> None:
    ran = subprocess.run([sys.executable, "-c", _ENGINE], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    resident = int(ran.stdout.splitlines()[-1])
    checkpoint = resolve(None)
    config = checkpoint.config
    forecast = forecast_serving(
        config,
        EngineSettings(max_batch_total_tokens=8192),
        device_bytes=8 * GIB,
        on_gpu=False,
        stored_weight_bytes=stored_bytes(config, checkpoint.tensors),
    )
    assert forecast.total_bytes == pytest.approx(resident, rel=0.05)
