"""A process that answers on the real link without a model: a token a step for every request.

Each token's log-probability is the monotonic time at which its step was sent, so that whoever
receives the event on the same machine knows how long it took.

    python benchmarks/null_engine.py ipc:///path/engine.sock --steps-per-second 40
"""

from __future__ import annotations

import argparse
import os
import time

from headrace.link.channel import EngineChannel
from headrace.link.messages import (
    FINISH_LENGTH,
    Abort,
    EngineReady,
    EngineStats,
    RequestOutput,
    StepOutput,
    Submit,
)

_STATS_SECONDS = 0.25
# Ordinary words of most vocabularies.
_FIRST_TOKEN, _TOKENS = 1000, 4096


def ready(streams: int) -> EngineReady:
    """What a warm engine would say."""
    return EngineReady(
        model_id="null",
        device="cpu",
        backend="null",
        dtype="float32",
        max_input_tokens=4096,
        max_total_tokens=8192,
        max_batch_total_tokens=8192 * streams,
        max_batch_size=streams,
        block_size=16,
        kv_blocks=512 * streams,
        vocab_size=49152,
        warmup_seconds=0.0,
    )


class NullEngine:
    """Steps at a fixed rate; every running request gets a token in every step."""

    def __init__(self, address: str, steps_per_second: float) -> None:
        self._channel = EngineChannel(address)
        self._step_seconds = 1.0 / steps_per_second
        self._remaining: dict[int, int] = {}
        self._steps = 0

    def run(self, streams: int) -> None:
        """Answer until the transport is gone."""
        self._channel.send(ready(streams))
        parent = os.getppid()
        next_step = time.monotonic()
        next_stats = next_step
        while os.getppid() == parent:
            for message in self._channel.receive(max(next_step - time.monotonic(), 0.0)):
                if isinstance(message, Submit):
                    self._remaining[message.request_id] = message.sampling.max_new_tokens or 1
                elif isinstance(message, Abort):
                    for request_id in message.request_ids:
                        self._remaining.pop(request_id, None)
            now = time.monotonic()
            if now >= next_stats:
                self._send_stats()
                next_stats = now + _STATS_SECONDS
            if now >= next_step:
                # A late step is not made up for: an engine does not hurry either.
                next_step = max(next_step + self._step_seconds, now)
                self._step()

    def _step(self) -> None:
        if not self._remaining:
            return
        self._steps += 1
        stamp = [time.monotonic()]
        token_ids = [_FIRST_TOKEN + self._steps * 7 % _TOKENS]
        outputs = []
        ended = []
        for request_id, remaining in self._remaining.items():
            reason = None
            if remaining == 1:
                reason = FINISH_LENGTH
                ended.append(request_id)
            self._remaining[request_id] = remaining - 1
            outputs.append(
                RequestOutput(request_id, token_ids, logprobs=stamp, finish_reason=reason)
            )
        for request_id in ended:
            del self._remaining[request_id]
        self._channel.send(StepOutput(outputs))

    def _send_stats(self) -> None:
        running = len(self._remaining)
        self._channel.send(
            EngineStats(
                running=running,
                waiting=0,
                kv_blocks_used=running,
                kv_blocks_total=512 * max(running, 1),
                prefix_hit_tokens_total=0,
                prefix_query_tokens_total=0,
                preemptions_total=0,
                steps_total=self._steps,
                prefill_tokens_total=0,
                decode_tokens_total=0,
                forward_seconds_total=0.0,
                schedule_seconds_total=0.0,
                batch_tokens=running,
            )
        )


def main() -> None:
    """Run from a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--steps-per-second", type=float, default=40.0)
    parser.add_argument("--streams", type=int, default=256)
    arguments = parser.parse_args()
    NullEngine(arguments.address, arguments.steps_per_second).run(arguments.streams)


if __name__ == "__main__":
    main()
