"""The messages of the link, msgpack-encoded tagged structs.

Transport to engine: ``Submit``, ``Abort``, ``Drain``. Engine to transport: ``EngineReady``,
``EngineFailed``, ``StepOutput``, ``RequestFailed``, ``EngineStats``. Request ids are integers
that the sender of ``Submit`` chooses and never reuses within the life of one engine process.
"""

from __future__ import annotations

import msgspec

from headrace.link.errors import ErrorCode
from headrace.link.sampling import SamplingParams

FINISH_LENGTH = "length"
FINISH_EOS = "eos_token"
FINISH_STOP = "stop_sequence"


class Submit(msgspec.Struct, tag="submit", frozen=True, kw_only=True):
    """A tokenized request.

    Attributes:
        token_ids: Prompt token ids; at least one.
        sampling: Parameters with ``max_new_tokens`` and ``seed`` filled in.
        priority: Larger is served earlier; 0 is ordinary.
        cache_salt: Requests share cached prefixes only with requests of the same salt.
        adapter: Name of the adapter that computes it; ``None``: the base model alone.
    """

    request_id: int
    token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    adapter: str | None = None


class Abort(msgspec.Struct, tag="abort", frozen=True):
    """Forget these requests and free their blocks; unknown ids are ignored."""

    request_ids: list[int]


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Finish what runs, then exit with status 0."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability (natural logarithm)."""

    token_id: int
    logprob: float


class RequestOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one request.

    Attributes:
        token_ids: New token ids; one for an ordinary step.
        logprobs: One for each new token where asked for, else empty.
        top_tokens: For each new token its most likely alternatives where asked for, else empty.
        finish_reason: ``length`` or ``eos_token`` with the last tokens, else ``None``.
        prompt_logprobs: With the first output where asked for: one for each prompt token after
            the first (the first has none).
        queue_seconds: With the first output: time from arrival to the first planned step.
        cached_tokens: With the first output: prompt tokens taken from the prefix cache.
    """

    request_id: int
    token_ids: list[int]
    logprobs: list[float] = []
    top_tokens: list[list[TokenLogprob]] = []
    finish_reason: str | None = None
    prompt_logprobs: list[float] | None = None
    queue_seconds: float | None = None
    cached_tokens: int | None = None


class StepOutput(msgspec.Struct, tag="step", frozen=True):
    """All requests' outputs of one step."""

    outputs: list[RequestOutput]


class RequestFailed(msgspec.Struct, tag="failed", frozen=True):
    """One request ended in an error; the others of its batch are untouched."""

    request_id: int
    code: ErrorCode
    message: str


class EngineReady(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """Warmup is done: what the engine decided and can take.

    Attributes:
        max_input_tokens: Longest prompt accepted.
        max_total_tokens: Longest prompt plus output of one request.
        max_batch_total_tokens: KV cache capacity in tokens, over all requests.
        vocab_size: Number of logits; token ids in ``logit_bias`` lie below it.
        adapters: Names of the adapters that requests may choose from.
    """

    model_id: str
    device: str
    backend: str
    dtype: str
    max_input_tokens: int
    max_total_tokens: int
    max_batch_total_tokens: int
    max_batch_size: int
    block_size: int
    kv_blocks: int
    vocab_size: int
    warmup_seconds: float
    adapters: list[str] = []


class EngineFailed(msgspec.Struct, tag="engine_failed", frozen=True):
    """The engine process is about to end; ``permanent`` when a restart cannot help."""

    message: str
    permanent: bool


class EngineStats(msgspec.Struct, tag="stats", frozen=True, kw_only=True):
    """A snapshot sent a few times a second and while idle: it is the engine's heartbeat.

    Fields named ``*_total`` only grow within the life of one engine process; seconds and tokens
    are sums since its start.
    """

    running: int
    waiting: int
    kv_blocks_used: int
    kv_blocks_total: int
    prefix_hit_tokens_total: int
    prefix_query_tokens_total: int
    preemptions_total: int
    steps_total: int
    prefill_tokens_total: int
    decode_tokens_total: int
    forward_seconds_total: float
    schedule_seconds_total: float
    batch_tokens: int


ToEngine = Submit | Abort | Drain
FromEngine = EngineReady | EngineFailed | StepOutput | RequestFailed | EngineStats
