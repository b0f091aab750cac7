"""In what order ``LLM.generate`` hands prompts to the engine, and gives their answers back."""

from __future__ import annotations

from typing import Any

from headrace import LLM, SamplingParams
from headrace.engine.core import StepEvents
from headrace.link.messages import RequestOutput, Submit


class OneStepEngine:
    """Answers every request with the length of its prompt, in the order of submission."""

    def __init__(self) -> None:
        self.submitted: list[Submit] = []

    def submit(self, request: Submit) -> None:
        self.submitted.append(request)

    def abort(self, request_ids: Any) -> None:
        pass

    def step(self) -> StepEvents:
        outputs = [
            RequestOutput(r.request_id, [len(r.token_ids)], [], [], "length", None, 0.0, 0)
            for r in self.submitted
        ]
        return StepEvents(outputs, [])


def test_what_takes_longest_begins_first_and_answers_keep_their_order(monkeypatch: Any) -> None:
    llm = LLM()
    engine = OneStepEngine()
    monkeypatch.setattr(llm, "_engine", engine)
    lengths = [5, 70, 20, 70, 1]
    params = [SamplingParams(max_new_tokens=length) for length in lengths]
    prompts = [[3] * (index + 1) for index in range(5)]
    answers = llm.generate(prompts, params, progress=False)
    asked = [(r.sampling.max_new_tokens, len(r.token_ids)) for r in engine.submitted]
    assert asked == [(70, 2), (70, 4), (20, 3), (5, 1), (1, 5)]
    assert [answer.token_ids for answer in answers] == [[1], [2], [3], [4], [5]]
