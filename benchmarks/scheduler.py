"""Time of one scheduler step under load: arrivals, plan, block growth, hashing, ends.

    python benchmarks/scheduler.py
    python benchmarks/scheduler.py --record benchmarks/records/cpu-zen4-scheduler.json

Three scenes, each in steady state and with nothing but the scheduler on the clock:

- ``crowd``: 256 running, 10,000 waiting, an arrival for every end and now and then an abort of a
  waiting and of a running request. Half the prompts begin with one of 64 shared prefixes.
- ``pressure``: the same with a KV cache too small for 256, so that sequences are preempted.
- ``single``: one request at a time.

One sample is all that one step costs: ``add`` and ``abort`` of what came in, ``plan``,
``complete``. Python's garbage collector is left as it is by default; ``--freeze-gc`` calls
``gc.freeze()`` once the load stands, as an engine does after warmup.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from array import array
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, quantiles

from headrace.benchmark.provenance import versions_of
from headrace.benchmark.record import Row, median_row, own_record
from headrace.hardware.processor import processor
from headrace.scheduling import Request, Scheduler, SchedulerLimits, StepPlan

VOCABULARY = 49_152
EOS = 2
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Scene:
    """One load."""

    name: str
    running: int
    waiting: int
    num_blocks: int
    prompt_lengths: tuple[int, int]
    output_lengths: tuple[int, int]
    abort_share: float = 0.02


SCENES = (
    Scene("crowd", 256, 10_000, 16_384, (32, 1024), (16, 256)),
    Scene("pressure", 256, 10_000, 6_144, (32, 256), (256, 1024)),
    Scene("single", 1, 0, 4_096, (128, 128), (128, 128), 0.0),
)


class Load:
    """Makes requests and the tokens that a model would sample, before the clock runs."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._random = random.Random(seed)
        self._prefixes = [self._tokens(256) for _ in range(64)]
        self._ids = 0

    def _tokens(self, count: int) -> array[int]:
        # Two bytes a token are random enough to be all different and fast to make.
        return array("i", array("H", self._random.randbytes(2 * count)))

    def request(self) -> Request:
        """A prompt with or without a shared prefix, and a random length of output."""
        prompt = self._tokens(self._random.randint(*self._scene.prompt_lengths))
        if self._random.random() < 0.5 and self._scene.waiting:
            prompt = self._random.choice(self._prefixes) + prompt[256:]
        self._ids += 1
        return Request(
            id=self._ids,
            token_ids=prompt.tolist(),
            max_new_tokens=self._random.randint(*self._scene.output_lengths),
            eos_token_ids=frozenset((EOS,)),
            priority=self._random.choice((0, 0, 0, 1)),
        )

    def sampled(self, count: int) -> list[int]:
        """Token ids as a model would sample; one in a thousand ends its sequence."""
        pick = self._random.random
        may_end = self._scene.waiting > 0
        return [
            EOS if may_end and pick() < 0.001 else 3 + int(pick() * 40_000) for _ in range(count)
        ]

    def aborted(self, arrivals: int) -> bool:
        """Whether some client goes away in this step."""
        return self._random.random() < self._scene.abort_share * arrivals

    def any_id(self) -> int:
        """The id of a request that may still live."""
        return self._random.randint(max(1, self._ids - self._scene.waiting - 512), self._ids)


@dataclass
class Run:
    """Samples of one run, in milliseconds, and what the load looked like."""

    steps: list[float]
    plans: list[float]
    completes: list[float]
    running: float
    waiting: float
    batch_tokens: float
    preemptions: int
    hit_share: float


def run(scene: Scene, steps: int, warmup: int, depth: int, seed: int, freeze_gc: bool) -> Run:
    """Drive one scene for ``warmup`` and then ``steps`` measured steps."""
    load = Load(scene, seed)
    scheduler = Scheduler(
        SchedulerLimits(
            token_budget=2048 + scene.running,
            max_running=scene.running,
            max_waiting=scene.waiting + 1024,
            block_size=BLOCK_SIZE,
            num_blocks=scene.num_blocks,
            max_sequence_length=8192,
        )
    )
    clock = time.perf_counter
    flight: deque[StepPlan] = deque()
    result = Run([], [], [], 0, 0, 0, 0, 0)
    running, waiting, tokens = [], [], []
    live = 0
    preempted_before = 0
    arrivals = [load.request() for _ in range(scene.running + scene.waiting)]
    for step in range(-warmup, steps):
        if step == 0:
            preempted_before = scheduler.stats().preemptions_total
            if freeze_gc:
                gc.collect()
                gc.freeze()
        victim = load.any_id() if arrivals and load.aborted(len(arrivals)) else None

        begin = clock()
        for request in arrivals:
            scheduler.add(request)
        live += len(arrivals)
        if victim is not None:
            live -= scheduler.abort(victim)
        plan_begin = clock()
        plan = scheduler.plan()
        plan_end = clock()
        entry = plan_end - begin

        arrivals = []
        complete_time = 0.0
        if plan is not None:
            flight.append(plan)
        if len(flight) >= depth or plan is None:
            if not flight:
                raise RuntimeError("no plan although requests live")
            done = flight.popleft()
            sampled = load.sampled(done.num_samples)
            begin = clock()
            outputs = scheduler.complete(done, sampled)
            complete_time = clock() - begin
            ended = sum(output.finish_reason is not None for output in outputs)
            live -= ended
        missing = scene.running + scene.waiting - live
        arrivals = [load.request() for _ in range(missing)]
        if step >= 0:
            result.steps.append(1e3 * (entry + complete_time))
            result.plans.append(1e3 * (plan_end - plan_begin))
            result.completes.append(1e3 * complete_time)
            stats = scheduler.stats()
            running.append(stats.running)
            waiting.append(stats.waiting)
            tokens.append(stats.batch_tokens)
    stats = scheduler.stats()
    scheduler.check_integrity()
    gc.unfreeze()
    result.running, result.waiting, result.batch_tokens = map(fmean, (running, waiting, tokens))
    result.preemptions = stats.preemptions_total - preempted_before
    result.hit_share = stats.prefix_hit_tokens_total / max(stats.prefix_query_tokens_total, 1)
    return result


def percentile(samples: list[float], percent: int) -> float:
    """The given percentile, interpolated."""
    return quantiles(samples, n=100)[percent - 1]


def rows_of(scene: Scene, runs: list[Run]) -> list[Row]:
    """Record rows of one scene: every sample once, then one p99 a repetition."""
    conditions = {"scene": scene.name, "waiting": scene.waiting}

    def row(metric: str, samples: list[float]) -> Row:
        rounded = [round(sample, 5) for sample in samples]
        return median_row(metric, rounded, "ms", batch=scene.running, conditions=conditions)

    return [
        row("scheduler_step_ms", [sample for one in runs for sample in one.steps]),
        row("scheduler_step_p99_ms", [percentile(one.steps, 99) for one in runs]),
    ]


def main() -> None:
    """Run the scenes, print a table, write the record if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scene", action="append", choices=[scene.name for scene in SCENES])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--warmup", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=1, help="plans in flight")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--freeze-gc", action="store_true")
    parser.add_argument("--record", type=Path, help="write a JSON record here")
    options = parser.parse_args()

    rows: list[Row] = []
    print("scene      step p50   p90    p99    max ms | plan p50  complete p50 | load")
    for scene in SCENES:
        if options.scene and scene.name not in options.scene:
            continue
        runs = []
        for repeat in range(options.repeats):
            one = run(
                scene,
                options.steps,
                options.warmup,
                options.depth,
                options.seed + repeat,
                options.freeze_gc,
            )
            runs.append(one)
            print(
                f"{scene.name:10} {median(one.steps):8.3f} {percentile(one.steps, 90):6.3f} "
                f"{percentile(one.steps, 99):6.3f} {max(one.steps):6.3f}    | "
                f"{median(one.plans):8.3f} {median(one.completes):12.3f}  | "
                f"{one.running:.0f} running, {one.waiting:.0f} waiting, "
                f"{one.batch_tokens:.0f} tokens a step, {one.preemptions} preemptions, "
                f"{100 * one.hit_share:.0f} % prefix hits"
            )
        rows += rows_of(scene, runs)
    if options.record:
        own_record(processor(), rows, versions_of(), seed=options.seed).write(options.record)
        print(f"wrote {options.record}")


if __name__ == "__main__":
    main()
