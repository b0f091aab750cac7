"""A scripted engine on the other end of the real link: it answers with fixed tokens."""

from __future__ import annotations

import threading
import time

from headrace.link.channel import EngineChannel
from headrace.link.errors import ErrorCode
from headrace.link.messages import (
    FINISH_EOS,
    FINISH_LENGTH,
    Abort,
    Drain,
    EngineReady,
    EngineStats,
    RequestFailed,
    RequestOutput,
    StepOutput,
    Submit,
    TokenLogprob,
)

READY = EngineReady(
    model_id="null",
    device="cpu",
    backend="null",
    dtype="float32",
    max_input_tokens=256,
    max_total_tokens=512,
    max_batch_total_tokens=4096,
    max_batch_size=64,
    block_size=16,
    kv_blocks=256,
    vocab_size=49152,
    warmup_seconds=0.0,
)


class NullEngine(threading.Thread):
    """Answers every request with ``script``, then the end-of-sequence id, a token a step.

    Attributes:
        submits: Every request received, in order.
        aborted: Ids of aborted requests.
        held: While set, requests wait: no tokens are sent.
        step_seconds: Pause between steps.
        fail_with: Answer new requests with this error.
    """

    def __init__(self, address: str, script: list[int], eos_id: int) -> None:
        super().__init__(daemon=True)
        self._channel = EngineChannel(address)
        self._script = script
        self._eos_id = eos_id
        self._running: dict[int, tuple[Submit, int]] = {}
        self._stopping = threading.Event()
        self.submits: list[Submit] = []
        self.aborted: set[int] = set()
        self.held = threading.Event()
        self.step_seconds = 0.0
        self.fail_with: ErrorCode | None = None
        self.steps = 0

    def run(self) -> None:
        self._channel.send(READY)
        self._send_stats()
        while not self._stopping.is_set():
            idle = not self._running or self.held.is_set()
            for message in self._channel.receive(0.01 if idle else 0.0):
                self._take(message)
            if self._running and not self.held.is_set():
                self._step()
                if self.step_seconds:
                    time.sleep(self.step_seconds)
        self._channel.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    @property
    def running(self) -> int:
        return len(self._running)

    def _take(self, message: Submit | Abort | Drain) -> None:
        match message:
            case Submit():
                self.submits.append(message)
                if self.fail_with is not None:
                    self._channel.send(
                        RequestFailed(message.request_id, self.fail_with, "as the test wants it")
                    )
                else:
                    self._running[message.request_id] = (message, 0)
            case Abort():
                self.aborted.update(message.request_ids)
                for request_id in message.request_ids:
                    self._running.pop(request_id, None)

    def _step(self) -> None:
        outputs = []
        for request_id, (submit, position) in list(self._running.items()):
            outputs.append(self._output(submit, position))
            if outputs[-1].finish_reason is None:
                self._running[request_id] = (submit, position + 1)
            else:
                del self._running[request_id]
        self.steps += 1
        self._channel.send(StepOutput(outputs))
        self._send_stats()

    def _output(self, submit: Submit, position: int) -> RequestOutput:
        sampling = submit.sampling
        at_end = position == len(self._script) and not sampling.ignore_eos
        token_id = self._eos_id if at_end else self._script[position % len(self._script)]
        reason = None
        if at_end:
            reason = FINISH_EOS
        elif position + 1 == sampling.max_new_tokens:
            reason = FINISH_LENGTH
        # The second of two sequences is the more likely one.
        logprob = -2.0 / (1 + submit.request_id % 2)
        tops = [TokenLogprob(token_id + i, logprob - i) for i in range(sampling.top_n_tokens)]
        first = position == 0
        wants_prompt = sampling.decoder_input_details and first
        return RequestOutput(
            submit.request_id,
            [token_id],
            logprobs=[logprob] if sampling.logprobs else [],
            top_tokens=[tops] if tops else [],
            finish_reason=reason,
            prompt_logprobs=[-1.0] * (len(submit.token_ids) - 1) if wants_prompt else None,
            queue_seconds=0.001 if first else None,
            cached_tokens=3 if first else None,
        )

    def _send_stats(self) -> None:
        self._channel.send(
            EngineStats(
                running=len(self._running),
                waiting=0,
                kv_blocks_used=len(self._running),
                kv_blocks_total=256,
                prefix_hit_tokens_total=7,
                prefix_query_tokens_total=9,
                preemptions_total=1,
                steps_total=self.steps,
                prefill_tokens_total=self.steps,
                decode_tokens_total=self.steps,
                forward_seconds_total=0.5,
                schedule_seconds_total=0.25,
                batch_tokens=len(self._running),
            )
        )
