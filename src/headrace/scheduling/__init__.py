"""Who computes how many tokens in the next step, and in which KV blocks. Pure Python."""

from headrace.scheduling.errors import IntegrityError, QueueFull
from headrace.scheduling.limits import SchedulerLimits
from headrace.scheduling.request import Request
from headrace.scheduling.scheduler import Scheduler
from headrace.scheduling.sequence import Sequence
from headrace.scheduling.stats import SchedulerStats
from headrace.scheduling.step_plan import (
    AppendedBlock,
    ScheduledSequence,
    SequenceOutput,
    StepPlan,
)

__all__ = [
    "AppendedBlock",
    "IntegrityError",
    "QueueFull",
    "Request",
    "ScheduledSequence",
    "Scheduler",
    "SchedulerLimits",
    "SchedulerStats",
    "Sequence",
    "SequenceOutput",
    "StepPlan",
]
