"""The runtime state of one request: its tokens, its blocks, its row, how far it is computed."""

from __future__ import annotations

from array import array
from enum import Enum, auto

from headrace.link.messages import FINISH_EOS, FINISH_LENGTH
from headrace.scheduling.request import Request
from headrace.scheduling.step_plan import ScheduledSequence

NO_ROW = -1


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    """Its blocks are wanted; it waits again once the steps that hold it have completed."""
    ENDED = auto()


class Sequence:
    """One request on its way through the scheduler. Written by the scheduler only.

    ``length`` runs ahead of ``tokens``: planning a step that samples adds one to it, completing
    the step adds the token. A planned position at or past ``len(tokens)`` is therefore one whose
    token still lies on the device, sampled by the step before.

    Attributes:
        request: What was asked for.
        order_key: Virtual arrival time in seconds: arrival minus ``priority * ageing_seconds``.
            Effective priority (priority + waiting / ageing) ranks any two sequences by this key
            at every moment, smallest first.
        number: Order of arrival, which breaks ties.
        tokens: Prompt and output tokens known so far (int32).
        prompt_length: Tokens of the prompt.
        max_length: Prompt plus ``max_new_tokens``.
        length: Known tokens plus those that steps in flight will sample.
        num_computed: Tokens computed once the steps in flight have completed.
        block_table: Cache blocks in order of position.
        row: Slot of device-side state while it holds blocks, else ``NO_ROW``.
        last_step: Number of the latest planned step that computes tokens of it.
        block_hashes: Chain of hashes of its leading full blocks, as far as they were needed.
        registered_blocks: Leading blocks that were offered to the prefix cache or taken from it.
        bypasses: Later requests that were admitted while this one did not fit.
        queue_seconds: Time from arrival to its first planned step; ``None`` before.
        cached_tokens: Prompt tokens that its first admission took from the prefix cache; ``None``
            again after the first output, which tells it.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_table",
        "bypasses",
        "cached_tokens",
        "ending_token_ids",
        "last_step",
        "length",
        "max_length",
        "num_computed",
        "number",
        "order_key",
        "prompt_length",
        "queue_seconds",
        "registered_blocks",
        "request",
        "row",
        "status",
        "tokens",
    )

    def __init__(
        self, request: Request, number: int, arrival: float, ageing_seconds: float
    ) -> None:
        self.request = request
        self.number = number
        self.arrival = arrival
        self.order_key = arrival - request.priority * ageing_seconds
        self.tokens = array("i", request.token_ids)
        self.prompt_length = len(self.tokens)
        self.max_length = self.prompt_length + request.max_new_tokens
        self.ending_token_ids = frozenset[int]() if request.ignore_eos else request.eos_token_ids
        self.length = self.prompt_length
        self.num_computed = 0
        self.block_table: list[int] = []
        self.row = NO_ROW
        self.status = SequenceStatus.WAITING
        self.last_step = 0
        self.block_hashes: list[bytes] = []
        self.registered_blocks = 0
        self.bypasses = 0
        self.queue_seconds: float | None = None
        self.cached_tokens: int | None = None

    @property
    def id(self) -> int:
        """The request's id."""
        return self.request.id

    @property
    def num_generated(self) -> int:
        """Output tokens known so far."""
        return len(self.tokens) - self.prompt_length

    def plan_tokens(self, num_tokens: int, step: int) -> ScheduledSequence:
        """Count the next ``num_tokens`` as computed, and the sampled one if they reach the end."""
        start = self.num_computed
        end = self.num_computed = start + num_tokens
        self.last_step = step
        samples = end == self.length
        if samples:
            self.length += 1
        return ScheduledSequence(self, start, num_tokens, samples)

    def accept(self, token_id: int) -> str | None:
        """Append a sampled token; the finish reason if the sequence ends with it."""
        tokens = self.tokens
        tokens.append(token_id)
        if token_id in self.ending_token_ids and self.num_generated > self.request.min_new_tokens:
            return FINISH_EOS
        return FINISH_LENGTH if len(tokens) == self.max_length else None

    def forget_computation(self) -> None:
        """Back to nothing computed, with every known token kept."""
        self.num_computed = 0
        self.block_table = []
        self.row = NO_ROW
        self.registered_blocks = 0
