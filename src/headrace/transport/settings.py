"""Settings of the HTTP server; the names are those of TGI's launcher where it has one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportSettings:
    """How the server listens, whom it lets in, and how much it takes.

    Attributes:
        hostname: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        served_model_name: Name that clients see; ``None``: the model's own.
        api_keys: Accepted bearer tokens; empty: none is required.
        cors_allow_origin: Origins whose pages may call the server; ``*`` allows all.
        graceful_termination_timeout: Seconds that running requests get after SIGTERM.
        request_timeout: Seconds from arrival to the last token; ``None``: no bound. A client
            may ask for less with the header ``x-request-timeout``.
        max_concurrent_requests: Most sequences at once, waiting ones included.
        max_best_of: Largest ``best_of`` and ``n``.
        max_stop_sequences: Most stop strings of one request.
        max_stop_length: Most characters of one stop string.
        max_top_n_tokens: Largest ``top_n_tokens``, ``top_logprobs`` and legacy ``logprobs``.
        max_client_batch_size: Most prompts in one request.
        max_messages: Most messages in one chat.
        payload_limit: Bytes of the largest request body.
        header_limit: Bytes of the largest request line and headers together.
        header_timeout: Seconds that a connection may take to send a request's headers.
        body_timeout: Seconds that a client may take to send a request's body.
        keep_alive_timeout: Seconds that an idle connection is kept after a reply.
        validation_workers: Threads that tokenize and render templates.
        json_output: Log lines as JSON.
    """

    hostname: str = "0.0.0.0"
    port: int = 3000
    served_model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    cors_allow_origin: tuple[str, ...] = ()
    graceful_termination_timeout: float = 90.0
    request_timeout: float | None = None
    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_stop_length: int = 1024
    max_top_n_tokens: int = 5
    max_client_batch_size: int = 4
    max_messages: int = 2048
    payload_limit: int = 2_000_000
    header_limit: int = 65_536
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    keep_alive_timeout: float = 75.0
    validation_workers: int = 2
    json_output: bool = False
