"""The runner: rows and blocks in, sampled ids and log-probabilities out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from headrace.checkpoint.resolve import resolve
from headrace.link.errors import ConfigurationError
from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.loading.load import load_decoder
from headrace.modeling.runner import (
    ModelRunner,
    RunnerLimits,
    ScheduledTokens,
    cache_bytes_per_block,
)

PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38]
LIMITS = RunnerLimits(max_tokens=32, max_rows=4, max_length=64, block_size=4, num_blocks=64)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(8)
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reference(directory: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(directory).eval()


def make_runner(directory: Path, limits: RunnerLimits = LIMITS) -> ModelRunner:
    checkpoint = resolve(str(directory))
    backend = TorchBackend(torch.device("cpu"), torch.float32)
    decoder = load_decoder(checkpoint, backend.operations)
    return ModelRunner(checkpoint.config, decoder, backend, limits)


@pytest.fixture
def runner(directory: Path) -> ModelRunner:
    return make_runner(directory)


def admit(
    runner: ModelRunner, row: int, sampling: SamplingParams, prompt: list[int] = PROMPT
) -> None:
    runner.set_row(row, sampling, prompt, (2,))
    runner.set_blocks(row, 0, range(row * 16, row * 16 + 16))


def generate(runner: ModelRunner, row: int, count: int, *, ids_on_device: bool) -> list[int]:
    output = runner.execute([ScheduledTokens(row, 0, PROMPT, samples=True)]).token_ids
    while len(output) < count:
        fed = None if ids_on_device else output[-1:]
        step = ScheduledTokens(row, len(PROMPT) + len(output) - 1, fed, samples=True)
        output += runner.execute([step]).token_ids
    return output


@torch.no_grad()
def test_greedy_tokens_are_transformers(runner: ModelRunner, reference: LlamaForCausalLM) -> None:
    expected = reference.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, len(PROMPT) :].tolist()
    admit(runner, 0, SamplingParams())
    assert generate(runner, 0, 12, ids_on_device=False) == expected
    admit(runner, 2, SamplingParams())
    assert generate(runner, 2, 12, ids_on_device=True) == expected


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(10,), (4, 4, 2), (1, 9)])
def test_prompt_logprobs_in_any_chunks(
    runner: ModelRunner, reference: LlamaForCausalLM, cuts: tuple[int, ...]
) -> None:
    """With four rows of logits at once, so that a chunk takes several passes of the head."""
    logprobs = reference(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    expected = logprobs[:-1].gather(-1, torch.tensor(PROMPT[1:])[:, None])[:, 0]
    admit(runner, 1, SamplingParams(decoder_input_details=True, logprobs=True))
    admit(runner, 3, SamplingParams(), [7, 8])
    got: list[float] = []
    start = 0
    for length in cuts:
        last = start + length == len(PROMPT)
        entries = [
            ScheduledTokens(3, start, [7], samples=True),
            ScheduledTokens(1, start, PROMPT[start : start + length], samples=last),
        ]
        result = runner.execute(entries)
        assert len(result.token_ids) == 1 + last
        got += result.prompt_logprobs[1]
        start += length
    torch.testing.assert_close(torch.tensor(got), expected, rtol=1e-4, atol=1e-4)
    assert result.logprobs == {1: pytest.approx(float(logprobs[-1].max()), abs=1e-4)}


@torch.no_grad()
def test_top_tokens_only_for_rows_that_ask(
    runner: ModelRunner, reference: LlamaForCausalLM
) -> None:
    admit(runner, 0, SamplingParams())
    admit(runner, 1, SamplingParams(top_n_tokens=3))
    admit(runner, 2, SamplingParams(top_n_tokens=1))
    batch = [ScheduledTokens(row, 0, PROMPT, samples=True) for row in range(3)]
    result = runner.execute(batch)
    values, ids = reference(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1).topk(3)
    assert [token.token_id for token in result.top_tokens[1]] == ids.tolist()
    logprobs = [token.logprob for token in result.top_tokens[1]]
    assert logprobs == pytest.approx(values.tolist(), abs=1e-4)
    assert len(result.top_tokens[2]) == 1
    assert result.top_tokens.keys() == {1, 2}
    assert not result.logprobs


def test_a_preempted_sequence_goes_on_as_if_nothing_happened(runner: ModelRunner) -> None:
    sampling = SamplingParams(
        do_sample=True, seed=77, temperature=1.5, repetition_penalty=1.3, min_new_tokens=6
    )
    admit(runner, 0, sampling)
    whole = generate(runner, 0, 10, ids_on_device=False)
    known = whole[:4]
    runner.clear_row(0)
    runner.set_row(3, sampling, PROMPT, (2,), known)
    runner.set_blocks(3, 0, range(63, 47, -1))
    rest = runner.execute([ScheduledTokens(3, 0, PROMPT + known, samples=True)]).token_ids
    while len(known) + len(rest) < 10:
        start = len(PROMPT) + len(known) + len(rest) - 1
        rest += runner.execute([ScheduledTokens(3, start, rest[-1:], samples=True)]).token_ids
    assert known + rest == whole


def test_a_step_that_samples_nothing_gives_nothing(runner: ModelRunner) -> None:
    admit(runner, 0, SamplingParams())
    result = runner.execute([ScheduledTokens(0, 0, PROMPT[:5], samples=False)])
    assert result.token_ids == []
    assert result.prompt_logprobs == {}


def test_blocks_appended_one_at_a_time(runner: ModelRunner) -> None:
    admit(runner, 0, SamplingParams())
    expected = generate(runner, 0, 8, ids_on_device=False)
    runner.set_row(1, SamplingParams(), PROMPT, ())
    runner.set_blocks(1, 0, [40, 60, 41])
    output = runner.execute([ScheduledTokens(1, 0, PROMPT, samples=True)]).token_ids
    for length in range(len(PROMPT) + 1, len(PROMPT) + 8):
        if (length - 1) % 4 == 0:
            runner.set_blocks(1, (length - 1) // 4, [20 + length])
        output += runner.execute([ScheduledTokens(1, length - 1, output[-1:], True)]).token_ids
    assert output == expected


@pytest.mark.parametrize(
    "batch",
    [
        [],
        [ScheduledTokens(0, 0, [], samples=True)],
        [ScheduledTokens(0, 0, [1] * 33, samples=True)],
        [ScheduledTokens(row, 0, [1], samples=True) for row in range(5)],
    ],
)
def test_an_impossible_batch_is_refused(runner: ModelRunner, batch: list[ScheduledTokens]) -> None:
    with pytest.raises(ValueError, match="step"):
        runner.execute(batch)


def test_warm_up_leaves_the_runner_usable(runner: ModelRunner, directory: Path) -> None:
    admit(runner, 0, SamplingParams())
    expected = generate(runner, 0, 5, ids_on_device=False)
    fresh = make_runner(directory)
    fresh.warm_up()
    admit(fresh, 0, SamplingParams())
    assert generate(fresh, 0, 5, ids_on_device=False) == expected


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="num_blocks must be >= 1, got 0"):
        RunnerLimits(32, 4, 64, 16, 0).check()


def test_cache_bytes_are_those_of_keys_and_values(directory: Path) -> None:
    checkpoint = resolve(str(directory))
    backend = TorchBackend(torch.device("cpu"), torch.bfloat16)
    decoder = load_decoder(checkpoint, backend.operations)
    # 2 layers, keys and values, 2 heads of 16, 2 bytes.
    assert cache_bytes_per_block(decoder, 8) == 2 * 2 * 2 * 16 * 8 * 2
