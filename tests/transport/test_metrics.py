"""``/metrics``: TGI's names, and what TGI does not measure."""

from __future__ import annotations

import re
from typing import Any

import httpx

COUNTERS = ["tgi_request_count", "tgi_request_success", "tgi_request_failure"]
COUNTERS += [f"tgi_batch_inference_{kind}" for kind in ("count", "success", "failure")]
GAUGES = ["tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"]
GAUGES += ["tgi_batch_total_tokens", "headrace_kv_blocks_used", "headrace_kv_blocks_total"]
HISTOGRAMS = [
    f"tgi_request_{kind}"
    for kind in (
        "duration",
        "validation_duration",
        "queue_duration",
        "inference_duration",
        "mean_time_per_token_duration",
        "generated_tokens",
        "input_length",
        "max_new_tokens",
        "skipped_tokens",
    )
]
HISTOGRAMS += [
    f"tgi_batch_{kind}"
    for kind in (
        "next_size",
        "inference_duration",
        "forward_duration",
        "decode_duration",
        "filter_duration",
    )
]
HISTOGRAMS += ["headrace_time_to_first_token_seconds", "headrace_inter_token_latency_seconds"]
OWN_COUNTERS = ["headrace_prefix_hit_tokens_total", "headrace_preemptions_total"]


def read(http: httpx.Client) -> str:
    return http.get("/metrics").text


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found, series
    return float(found[1])


def test_every_name_is_there(http: httpx.Client) -> None:
    http.post("/generate", json={"inputs": "Hi"})
    http.post("/generate", json={"inputs": ""})
    text = read(http)
    for name in [*COUNTERS, *GAUGES, *OWN_COUNTERS]:
        assert re.search(rf"^{name}(\{{.*\}})? ", text, re.MULTILINE), name
    for name in HISTOGRAMS:
        assert re.search(rf"^{name}_bucket\{{.*le=\"\+Inf\".*\}} ", text, re.MULTILINE), name
        assert re.search(rf"^# TYPE {name} histogram$", text, re.MULTILINE), name
    for name in COUNTERS:
        assert re.search(rf"^# TYPE {name} counter$", text, re.MULTILINE), name


def test_requests_and_tokens_are_counted(http: httpx.Client, server: Any) -> None:
    before = read(http)
    reply = http.post(
        "/generate_stream", json={"inputs": "Hi", "parameters": {"max_new_tokens": 5}}
    )
    assert reply.status_code == 200
    http.post("/generate", json={"inputs": "Hi", "parameters": {"top_p": 3}})
    after = read(http)

    def grown(series: str) -> float:
        return value(after, series) - value(before, series)

    assert grown("tgi_request_count") == 2
    assert grown("tgi_request_success") == 1
    assert value(after, 'tgi_request_failure{err="validation"}') >= 1
    assert grown("tgi_request_generated_tokens_sum") == 5
    assert grown("headrace_time_to_first_token_seconds_count") == 1
    assert grown("headrace_inter_token_latency_seconds_count") <= 4
