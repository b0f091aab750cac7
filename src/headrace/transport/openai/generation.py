"""What chat and legacy completions translate alike."""

from __future__ import annotations

import time
from typing import Any

from headrace.link.adapters import PLACEHOLDERS
from headrace.link.errors import InvalidRequest
from headrace.link.messages import FINISH_LENGTH
from headrace.link.sampling import SamplingParams
from headrace.transport.errors import RequestFailure
from headrace.transport.generation import Generation
from headrace.transport.openai.schema import SharedParameters
from headrace.transport.sampling_request import check_stop, read_logit_bias
from headrace.transport.service import Service
from headrace.transport.settings import TransportSettings


def named_adapter(service: Service, name: str | None) -> str | None:
    """The adapter that ``model`` names; ``None``: the served model, which its absence names too.

    Raises:
        RequestFailure: 404: no such model is served.
    """
    if name in (None, "", *PLACEHOLDERS, service.model.model_id):
        return None
    adapters = service.client.adapters
    if name in adapters:
        return name
    shown = str(name)[:80]
    failure = RequestFailure(
        f"the model `{shown}` is not served here; {_served(service)}",
        status=404,
        error_type="model_not_found",
    )
    failure.param = "model"
    raise failure


def _served(service: Service) -> str:
    names = [f"`{name}`" for name in (service.model.model_id, *service.client.adapters)]
    return f"{names[0]} is" if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} are"


def read_sampling(
    request: SharedParameters,
    settings: TransportSettings,
    *,
    max_new_tokens: int | None,
    logprobs: bool,
    top_n_tokens: int,
    prompt_logprobs: bool = False,
) -> SamplingParams:
    """OpenAI's parameters under TGI's names: it samples unless the temperature is 0.

    Raises:
        HeadraceError: parameters that contradict each other or exceed the settings.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options", "given", "absent unless `stream` is true")
    greedy = request.temperature == 0
    return SamplingParams(
        max_new_tokens=max_new_tokens,
        min_new_tokens=request.min_new_tokens or 0,
        ignore_eos=bool(request.ignore_eos),
        do_sample=not greedy,
        temperature=1.0 if greedy or request.temperature is None else request.temperature,
        top_k=request.top_k,
        # 1.0 keeps every token.
        top_p=None if request.top_p == 1.0 else request.top_p,
        typical_p=request.typical_p,
        repetition_penalty=(
            1.0 if request.repetition_penalty is None else request.repetition_penalty
        ),
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=read_logit_bias(request.logit_bias),
        stop=check_stop(request.stop, settings),
        seed=request.seed,
        logprobs=logprobs,
        top_n_tokens=top_n_tokens,
        decoder_input_details=prompt_logprobs,
    )


def wants_usage(request: SharedParameters) -> bool:
    """Whether a stream ends with a usage chunk."""
    return bool(request.stream_options and request.stream_options.include_usage)


def finish_reason(reason: str | None) -> str | None:
    """OpenAI's name of a finish reason."""
    if reason is None:
        return None
    return "length" if reason == FINISH_LENGTH else "stop"


def usage(generation: Generation) -> dict[str, Any]:
    """Token counts of a request; each prompt is counted once."""
    prompt, generated = generation.prompt_tokens, generation.generated_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {
            "cached_tokens": max(s.cached_tokens for s in generation.sequences)
        },
    }


def envelope(service: Service, identifier: str, kind: str, adapter: str | None) -> dict[str, Any]:
    """The fields that every reply and every chunk bear; an adapter is named as the model."""
    return {
        "id": identifier,
        "object": kind,
        "created": int(time.time()),
        "model": adapter or service.model.model_id,
        "system_fingerprint": service.fingerprint,
    }
