"""Prometheus metrics: TGI's names, and what TGI does not measure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram, Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from headrace.transport.admission import Admission
from headrace.transport.engine_client import EngineClient
from headrace.transport.latency_histogram import LatencyHistogram

if TYPE_CHECKING:
    from headrace.transport.generation import Generation

# The client library would add a second time series to each counter and histogram.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST

# The client library ends every counter's name in _total; TGI's dashboards know them without.
_TGI_COUNTER = re.compile(rb"\b(tgi_(?:request|batch_inference)_(?:count|success|failure))_total\b")
# The method of TGI's batch metrics; a step computes prefill and decode tokens together.
_STEP = ["step"]

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_LATENCY = (*_SECONDS, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKENS = tuple(float(2**power) for power in range(18))


class Metrics:
    """Everything that ``/metrics`` shows, in a registry of its own."""

    def __init__(self, client: EngineClient, admission: Admission) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(client, admission))

        def latency(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_LATENCY, registry=registry)

        def tokens(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=_TOKENS, registry=registry)

        self._requests = Counter("tgi_request_count", "Requests for text", registry=registry)
        self._successes = Counter(
            "tgi_request_success", "Requests that were answered", registry=registry
        )
        self._failures = Counter(
            "tgi_request_failure", "Requests that failed, by error", ["err"], registry=registry
        )
        self._duration = latency("tgi_request_duration", "Seconds from arrival to end")
        self._validation = latency(
            "tgi_request_validation_duration", "Seconds of validation and tokenization"
        )
        self._queue = latency("tgi_request_queue_duration", "Seconds in the engine's queue")
        self._inference = latency("tgi_request_inference_duration", "Seconds of generation")
        self._per_token = latency(
            "tgi_request_mean_time_per_token_duration", "Seconds of generation for each token"
        )
        self._generated = tokens("tgi_request_generated_tokens", "Tokens generated for a request")
        self._input = tokens("tgi_request_input_length", "Tokens of a request's prompts")
        self._max_new = tokens("tgi_request_max_new_tokens", "Tokens that a request may generate")
        self._skipped = tokens(
            "tgi_request_skipped_tokens", "Tokens that speculation saved (there is none: always 0)"
        )
        self._adapter_requests = Counter(
            "headrace_adapter_requests", "Generations that ended", ["adapter"], registry=registry
        )
        self._adapter_tokens = Counter(
            "headrace_adapter_generated_tokens", "Tokens generated", ["adapter"], registry=registry
        )
        self.time_to_first_token = latency(
            "headrace_time_to_first_token_seconds", "Seconds from arrival to the first token"
        )
        self.inter_token_latency = LatencyHistogram(
            "headrace_inter_token_latency_seconds",
            "Seconds between arrivals of a request's tokens",
            _LATENCY,
        )
        registry.register(self.inter_token_latency)

    def count_request(self, failure: str | None) -> None:
        """A request for text is over; ``failure`` is the kind of error that ended it."""
        self._requests.inc()
        if failure is None:
            self._successes.inc()
        else:
            self._failures.labels(failure).inc()

    def count_generation(self, generation: Generation) -> None:
        """A generation reached its end."""
        timing = generation.timing
        inference = timing.ended - timing.validated - timing.queue_seconds
        self._duration.observe(timing.ended - timing.arrived)
        self._validation.observe(timing.validated - timing.arrived)
        self._queue.observe(timing.queue_seconds)
        self._inference.observe(inference)
        self._per_token.observe(inference / max(generation.generated_tokens, 1))
        self._generated.observe(generation.generated_tokens)
        self._input.observe(generation.prompt_tokens)
        self._max_new.observe(generation.sampling.max_new_tokens or 0)
        self._skipped.observe(0)
        if generation.adapter is not None:
            self._adapter_requests.labels(generation.adapter).inc()
            self._adapter_tokens.labels(generation.adapter).inc(generation.generated_tokens)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return _TGI_COUNTER.sub(rb"\1", prometheus_client.generate_latest(self._registry))


class _EngineCollector(Collector):
    """Reads the engine's latest snapshot when somebody asks."""

    def __init__(self, client: EngineClient, admission: Admission) -> None:
        self._client = client
        self._admission = admission

    def describe(self) -> Iterable[Metric]:
        """Nothing: names are only known when collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One metric family for each figure of the snapshot."""
        stats, limits = self._client.stats, self._client.limits
        yield _gauge("headrace_requests_in_flight", "Admitted sequences", self._admission.in_flight)
        yield _gauge("headrace_engine_ready", "Whether an engine is warm", self._client.ready)
        if limits is not None:
            yield _gauge(
                "tgi_batch_current_max_tokens",
                "Tokens that the running batch may hold",
                limits.max_batch_total_tokens,
            )
            yield _gauge(
                "tgi_batch_total_tokens",
                "Capacity of the KV cache in tokens",
                limits.max_batch_total_tokens,
            )
        if stats is None:
            return
        yield _gauge("tgi_queue_size", "Sequences that wait in the engine", stats.waiting)
        yield _gauge("tgi_batch_current_size", "Sequences that run", stats.running)
        yield _gauge("headrace_kv_blocks_used", "KV blocks in use", stats.kv_blocks_used)
        yield _gauge("headrace_kv_blocks_total", "KV blocks", stats.kv_blocks_total)
        for name, text, value in (
            ("prefix_hit_tokens", "Prompt tokens found cached", stats.prefix_hit_tokens_total),
            ("prefix_query_tokens", "Prompt tokens looked up", stats.prefix_query_tokens_total),
            ("preemptions", "Sequences preempted", stats.preemptions_total),
            ("prefill_tokens", "Prompt tokens computed", stats.prefill_tokens_total),
            ("decode_tokens", "Tokens generated", stats.decode_tokens_total),
        ):
            yield CounterMetricFamily(f"headrace_{name}", text, value)
        for name, text in (
            ("count", "Steps computed"),
            ("success", "Steps computed without an error"),
            ("failure", "Steps that failed as a whole"),
        ):
            family = CounterMetricFamily(f"tgi_batch_inference_{name}", text, labels=["method"])
            family.add_metric(_STEP, 0 if name == "failure" else stats.steps_total)
            yield family
        yield _gauge("headrace_batch_tokens", "Tokens of the latest step", stats.batch_tokens)
        seconds = stats.forward_seconds_total + stats.schedule_seconds_total
        for name, text, total in (
            ("inference", "Seconds of a step", seconds),
            ("forward", "Seconds of a step in the model", stats.forward_seconds_total),
            ("decode", "Seconds of a step outside the model", stats.schedule_seconds_total),
            ("filter", "Seconds to filter a batch (there is no such phase: 0)", 0.0),
        ):
            yield _histogram(f"tgi_batch_{name}_duration", text, stats.steps_total, total)
        yield _histogram(
            "tgi_batch_next_size",
            "Tokens of a step",
            stats.steps_total,
            float(stats.prefill_tokens_total + stats.decode_tokens_total),
            labelled=False,
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _histogram(name: str, text: str, count: int, total: float, labelled: bool = True) -> Metric:
    """A histogram of which the engine reports only count and sum."""
    family = HistogramMetricFamily(name, text, labels=["method"] if labelled else [])
    family.add_metric(_STEP if labelled else [], [("+Inf", count)], total)
    return family
