"""The engine over a runner that computes nothing but remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headrace.engine.core import Engine
from headrace.link.errors import InvalidRequest
from headrace.link.messages import RequestOutput, Submit
from headrace.link.sampling import SamplingParams
from headrace.modeling.runner import ScheduledTokens, StepResult
from headrace.scheduling.limits import SchedulerLimits
from headrace.scheduling.scheduler import Scheduler

BLOCK = 4
EOS = 99
ADAPTERS = ("lawyer", "poet")


class RememberingRunner:
    """Its cache holds the token ids, shifted by adapter; the next token is a function of them."""

    vocab_size = 100

    def __init__(self) -> None:
        self.tables: dict[int, dict[int, int]] = {}
        self.cache: dict[tuple[int, int], int] = {}
        self.last: dict[int, int] = {}
        self.poisoned: int | None = None
        self.prompts: dict[int, list[int]] = {}
        self.largest_step = 0
        self.adapters: dict[int, int] = {}

    def set_row(self, row, sampling, prompt, eos_token_ids, output, adapter) -> None:
        assert row not in self.tables
        self.adapters[row] = adapter
        self.tables[row] = {}
        if sampling.decoder_input_details:
            self.prompts[row] = list(prompt)

    def clear_row(self, row) -> None:
        del self.tables[row]
        self.prompts.pop(row, None)

    def set_blocks(self, row, first_index, block_ids) -> None:
        for index, block in enumerate(block_ids, first_index):
            self.tables[row][index] = block

    def launch(self, batch: Sequence[ScheduledTokens]) -> RememberingStep:
        result = StepResult([])
        self.largest_step = max(
            self.largest_step, sum(len(entry.token_ids or [0]) for entry in batch)
        )
        for index, entry in enumerate(batch):
            tokens = [self.last[entry.row]] if entry.token_ids is None else list(entry.token_ids)
            for position, token in enumerate(tokens, entry.start):
                block = self.tables[entry.row][position // BLOCK]
                self.cache[block, position % BLOCK] = token + shift(self.adapters[entry.row])
            if entry.row in self.prompts:
                targets = self.prompts[entry.row][entry.start + 1 :][: len(tokens)]
                if targets:
                    result.prompt_logprobs[index] = [-float(target) for target in targets]
            if entry.samples:
                context = [
                    self.cache[self.tables[entry.row][p // BLOCK], p % BLOCK]
                    for p in range(entry.start + len(tokens))
                ]
                if self.poisoned in context:
                    result.invalid.append(len(result.token_ids))
                self.last[entry.row] = next_token(context)
                result.token_ids.append(self.last[entry.row])
        return RememberingStep(result)


class RememberingStep:
    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


def shift(adapter: int) -> int:
    return 3 * (adapter + 1)


def next_token(context: list[int]) -> int:
    return sum((i + 1) * token for i, token in enumerate(context)) % EOS


def expected(prompt: list[int], count: int, adapter: int = -1) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token([token + shift(adapter) for token in tokens]))
    return tokens[len(prompt) :]


def build(
    depth: int = 1, num_blocks: int = 64, budget: int = 16
) -> tuple[Engine, RememberingRunner]:
    runner = RememberingRunner()
    limits = SchedulerLimits(
        token_budget=budget,
        max_running=8,
        max_waiting=100,
        block_size=BLOCK,
        num_blocks=num_blocks,
        max_sequence_length=64,
    )
    engine = Engine(
        Scheduler(limits),
        runner,  # type: ignore[arg-type]
        eos_token_ids=[EOS],
        max_input_tokens=60,
        depth=depth,
        adapters=ADAPTERS,
    )
    return engine, runner


def submit(
    engine: Engine,
    request_id: int,
    prompt: list[int],
    count: int,
    adapter: str | None = None,
    **sampling,
) -> None:
    params = SamplingParams(max_new_tokens=count, seed=0, **sampling)
    engine.submit(Submit(request_id=request_id, token_ids=prompt, sampling=params, adapter=adapter))


def drain(engine: Engine) -> tuple[dict[int, list[RequestOutput]], list[int]]:
    outputs: dict[int, list[RequestOutput]] = {}
    failed = []
    for _ in range(2000):
        if not engine.has_work:
            break
        events = engine.step()
        for output in events.outputs:
            outputs.setdefault(output.request_id, []).append(output)
        failed += [failure.request_id for failure in events.failures]
    assert not engine.has_work
    engine.check_integrity()
    assert engine.stats().kv_blocks_used == 0
    return outputs, failed


def tokens(outputs: list[RequestOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("num_blocks", [64, 20], ids=["roomy", "preempting"])
def test_every_request_gets_its_own_tokens(depth: int, num_blocks: int) -> None:
    engine, runner = build(depth, num_blocks)
    prompts = {i: [(7 * i + j) % 50 for j in range(5 + i)] for i in range(1, 8)}
    for request_id, prompt in prompts.items():
        submit(engine, request_id, prompt, 10 + request_id)
    outputs, failed = drain(engine)
    assert not failed
    for request_id, prompt in prompts.items():
        assert tokens(outputs[request_id]) == expected(prompt, 10 + request_id)
        assert outputs[request_id][-1].finish_reason == "length"
        assert outputs[request_id][0].queue_seconds is not None
    assert runner.largest_step <= 16
    assert (engine.stats().preemptions_total > 0) == (num_blocks == 20)


@pytest.mark.parametrize("num_blocks", [64, 20], ids=["roomy", "preempting"])
def test_every_request_is_computed_by_its_own_adapter(num_blocks: int) -> None:
    engine, _ = build(depth=2, num_blocks=num_blocks)
    prompt = list(range(1, 20))
    chosen = [None, "poet", "lawyer", "poet", None, "lawyer", "poet"]
    for request_id, adapter in enumerate(chosen):
        submit(engine, request_id, prompt, 15, adapter)
    outputs, failed = drain(engine)
    assert not failed
    stats = engine.stats()
    assert (stats.preemptions_total > 0) == (num_blocks == 20)
    for request_id, adapter in enumerate(chosen):
        index = -1 if adapter is None else ADAPTERS.index(adapter)
        assert tokens(outputs[request_id]) == expected(prompt, 15, index), adapter


def test_an_unknown_adapter_is_refused_with_those_that_exist() -> None:
    engine, _ = build()
    with pytest.raises(InvalidRequest, match="one of the served adapters `lawyer`, `poet`"):
        submit(engine, 1, [1], 1, adapter="painter")
    assert not engine.has_work


@pytest.mark.parametrize("depth", [1, 2])
def test_logits_that_are_not_finite_end_their_request_only(depth: int) -> None:
    engine, runner = build(depth)
    runner.poisoned = 77
    submit(engine, 1, [77, 1, 2, 3, 4, 5, 6, 7, 8], 10)
    submit(engine, 2, [5, 6, 7], 10)
    outputs, failed = drain(engine)
    assert failed == [1]
    assert tokens(outputs[2]) == expected([5, 6, 7], 10)
    # Nothing that the broken request computed may be served to another from the prefix cache.
    runner.poisoned = None
    submit(engine, 3, [77, 1, 2, 3, 4, 5, 6, 7, 8], 3)
    again, _ = drain(engine)
    assert again[3][0].cached_tokens == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_prompt_logprobs_survive_chunks_and_preemption(depth: int) -> None:
    engine, _ = build(depth, num_blocks=20)
    prompts = {i: [(3 * i + j) % 50 for j in range(20)] for i in range(1, 5)}
    for request_id, prompt in prompts.items():
        submit(engine, request_id, prompt, 12, decoder_input_details=True)
    outputs, _ = drain(engine)
    assert engine.stats().preemptions_total > 0
    for request_id, prompt in prompts.items():
        assert outputs[request_id][0].prompt_logprobs == [-float(t) for t in prompt[1:]]
        assert all(output.prompt_logprobs is None for output in outputs[request_id][1:])


def test_an_aborted_request_says_nothing_more_and_frees_its_blocks() -> None:
    engine, _ = build(depth=2)
    submit(engine, 1, [1, 2, 3], 30)
    submit(engine, 2, [4, 5, 6], 5)
    engine.step()
    engine.abort([1, 12345])
    outputs, _ = drain(engine)
    assert 1 not in outputs
    assert tokens(outputs[2]) == expected([4, 5, 6], 5)[-len(tokens(outputs[2])) :]


@pytest.mark.parametrize(
    ("prompt", "sampling", "field"),
    [
        ([], {}, "token_ids"),
        ([100], {}, "inputs"),
        ([1] * 61, {}, "inputs"),
        ([1], {"logit_bias": {100: 1.0}}, "logit_bias"),
        ([1], {"temperature": 0.0}, "temperature"),
        ([1], {"top_p": 1.5}, "top_p"),
        ([1] * 60, {}, "inputs tokens + max_new_tokens"),
    ],
)
def test_what_cannot_run_is_refused_by_field(prompt, sampling, field) -> None:
    engine, _ = build()
    with pytest.raises(InvalidRequest) as refused:
        submit(engine, 1, prompt, 10, **sampling)
    assert refused.value.field == field
    assert not engine.has_work
