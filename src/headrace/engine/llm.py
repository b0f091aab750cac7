"""``LLM``: generate from Python, with the engine of the server in this process."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.checkpoint.resolve import resolve
from headrace.checkpoint.text_stream import TextStream
from headrace.engine.build import build_engine
from headrace.engine.settings import EngineSettings
from headrace.link.adapters import check_adapter, check_names
from headrace.link.errors import HeadraceError, InvalidRequest
from headrace.link.messages import (
    FINISH_STOP,
    EngineReady,
    EngineStats,
    RequestOutput,
    Submit,
    TokenLogprob,
)
from headrace.link.sampling import MAX_SEED, SamplingParams

Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]


@dataclass(slots=True)
class Generation:
    """What one prompt brought.

    Attributes:
        text: Generated text; with ``return_full_text`` the prompt's text before it.
        token_ids: Generated ids, the end-of-sequence id included.
        finish_reason: ``length``, ``eos_token`` or ``stop_sequence``.
        logprobs: One for each generated token where ``logprobs`` was asked for.
        top_tokens: Where ``top_n_tokens`` was asked for.
        prompt_logprobs: One for each prompt token after the first where
            ``decoder_input_details`` was asked for.
        cached_tokens: Prompt tokens whose keys and values were reused.
        seed: Seed of the request's random stream.
    """

    prompt_token_ids: list[int]
    seed: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    logprobs: list[float] = field(default_factory=list)
    top_tokens: list[list[TokenLogprob]] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    cached_tokens: int = 0


class LLM:
    """A model in this process.

    Args:
        model: Directory, GGUF file or hub id; ``None``: the built-in model.
        lora_adapters: Name to PEFT directory or hub id of each adapter that prompts may choose.
        settings: Fields of ``EngineSettings`` by name: ``device``, ``dtype``, ``threads``, …

    Raises:
        ConfigurationError: the model or a setting cannot be used, in one line.

    Example:
        >>> from headrace import LLM, SamplingParams
        >>> llm = LLM()
        >>> llm.generate(["The capital of France is"], SamplingParams(max_new_tokens=8))
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        lora_adapters: Mapping[str, str | Path] | None = None,
        **settings: Any,
    ) -> None:
        sources = {name: str(source) for name, source in (lora_adapters or {}).items()}
        merged = EngineSettings(model=model, max_waiting=2**31 - 1, lora_adapters=sources)
        merged = msgspec.structs.replace(merged, **settings)
        self._checkpoint = resolve(model, merged.revision)
        check_names(sources, self._checkpoint.model_id)
        self._tokenizer = self._checkpoint.load_tokenizer()
        self._template = self._checkpoint.load_chat_template()
        self._engine, self._ready = build_engine(self._checkpoint, merged)
        self._next_id = 0

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | Sequence[str | None] | None = None,
        progress: bool = True,
    ) -> list[Generation]:
        """Generate for every prompt; they share steps, KV cache and prefixes.

        Args:
            prompts: One prompt or several; each a text, a list of token ids, or a chat (a list
                of messages with ``role`` and ``content``).
            params: One for all, or one for each prompt.
            adapter: Name of the adapter that computes the prompts, or one for each; ``None``: the
                base model alone.
            progress: Show a progress bar on a terminal.

        Returns:
            One generation a prompt, in their order.

        Raises:
            InvalidRequest: a prompt or parameter is out of its bound; nothing was generated.
        """
        several = _as_prompts(prompts)
        if params is None or isinstance(params, SamplingParams):
            each = [params or SamplingParams()] * len(several)
        else:
            each = list(params)
        if len(each) != len(several):
            raise InvalidRequest("params", len(each), f"one for each of {len(several)} prompts")
        if adapter is None or isinstance(adapter, str):
            adapters: list[str | None] = [adapter] * len(several)
        else:
            adapters = list(adapter)
        if len(adapters) != len(several):
            raise InvalidRequest(
                "adapter", len(adapters), f"one for each of {len(several)} prompts"
            )
        runs = [
            run
            for index, (prompt, param, name) in enumerate(zip(several, each, adapters, strict=True))
            for run in self._runs(index, prompt, param, name)
        ]
        self._run(runs, progress)
        best: dict[int, _Run] = {}
        for run in runs:
            if run.index not in best or run.score > best[run.index].score:
                best[run.index] = run
        return [best[index].result(several[index]) for index in range(len(several))]

    @property
    def ready(self) -> EngineReady:
        """What the engine decided: device, backend, dtype, limits."""
        return self._ready

    def stats(self) -> EngineStats:
        """Counters of the engine: blocks used, prefix hits, preemptions, tokens, seconds."""
        return self._engine.stats()

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        if prompt and isinstance(prompt[0], Mapping):
            text = self._template.render(list(prompt), add_generation_prompt=True)  # type: ignore[arg-type]
            return self._tokenizer.encode(text, add_special_tokens=False)
        return list(prompt)  # type: ignore[arg-type]

    def _runs(
        self, index: int, prompt: Prompt, params: SamplingParams, adapter: str | None
    ) -> list[_Run]:
        params.check()
        check_adapter("adapter", adapter, self._ready.adapters)
        token_ids = self._token_ids(prompt)
        if params.truncate is not None:
            token_ids = token_ids[-params.truncate :]
        if not token_ids:
            raise InvalidRequest("prompts", prompt, "at least one token")
        ready = self._ready
        if len(token_ids) > ready.max_input_tokens:
            raise InvalidRequest(
                "prompts", f"{len(token_ids)} tokens", f"<= {ready.max_input_tokens} tokens"
            )
        room = ready.max_total_tokens - len(token_ids)
        if params.max_new_tokens is not None and params.max_new_tokens > room:
            raise InvalidRequest(
                "max_new_tokens",
                params.max_new_tokens,
                f"<= {room}: prompt and output share {ready.max_total_tokens} tokens",
            )
        seed = params.seed if params.seed is not None else secrets.randbelow(MAX_SEED)
        runs = []
        for candidate in range(params.best_of):
            own = msgspec.structs.replace(
                params,
                max_new_tokens=params.max_new_tokens or room,
                seed=(seed + candidate) & MAX_SEED,
                logprobs=params.logprobs or params.best_of > 1,
            )
            self._next_id += 1
            submit = Submit(
                request_id=self._next_id, token_ids=token_ids, sampling=own, adapter=adapter
            )
            stream = TextStream(self._tokenizer, params.stop)
            runs.append(_Run(index, submit, stream, Generation(token_ids, own.seed or 0)))
        return runs

    def _run(self, runs: list[_Run], progress: bool) -> None:
        engine = self._engine
        live: dict[int, _Run] = {}
        try:
            for run in sorted(runs, key=_longest_first):
                engine.submit(run.submit)
                live[run.submit.request_id] = run
            columns = (TextColumn("generating"), BarColumn(), MofNCompleteColumn())
            speed = TextColumn("{task.fields[tokens]} tokens")
            with Progress(
                *columns, speed, TimeElapsedColumn(), disable=not progress, transient=True
            ) as bar:
                task = bar.add_task("", total=len(runs), tokens=0)
                tokens = 0
                while live:
                    events = engine.step()
                    if events.failures:
                        raise HeadraceError(events.failures[0].message)
                    for output in events.outputs:
                        tokens += len(output.token_ids)
                        if live[output.request_id].take(output):
                            del live[output.request_id]
                            engine.abort([output.request_id])
                    bar.update(task, completed=len(runs) - len(live), tokens=tokens)
        finally:
            engine.abort(list(live))


def _longest_first(run: _Run) -> int:
    """Order of admission where nobody waits for any one of the answers.

    Longest processing time first (Graham, 1969): what takes the most steps begins first, so that
    the last steps, which cost nearly as much with one sequence as with many, are few.
    """
    return -(run.submit.sampling.max_new_tokens or 0)


@dataclass(slots=True)
class _Run:
    """One sequence on its way to a ``Generation``."""

    index: int
    submit: Submit
    stream: TextStream
    generation: Generation

    def take(self, output: RequestOutput) -> bool:
        """Add what a step brought; whether the sequence has ended."""
        generation = self.generation
        if output.cached_tokens is not None:
            generation.cached_tokens = output.cached_tokens
        if output.prompt_logprobs is not None:
            generation.prompt_logprobs = output.prompt_logprobs
        delta = self.stream.push(output.token_ids)
        generation.token_ids += output.token_ids[: delta.used]
        generation.logprobs += output.logprobs[: delta.used]
        generation.top_tokens += output.top_tokens[: delta.used]
        if delta.stop is not None:
            generation.finish_reason = FINISH_STOP
        elif output.finish_reason is not None:
            self.stream.finish()
            # What was held back may turn out to be a stop string after all.
            stopped = self.stream.stop is not None
            generation.finish_reason = FINISH_STOP if stopped else output.finish_reason
        return bool(generation.finish_reason)

    @property
    def score(self) -> float:
        """Cumulative log-probability, by which ``best_of`` ranks."""
        return sum(self.generation.logprobs)

    def result(self, prompt: Prompt) -> Generation:
        """The finished generation."""
        generation = self.generation
        generation.text = self.stream.text_with_stop
        sampling = self.submit.sampling
        if sampling.return_full_text and isinstance(prompt, str):
            generation.text = prompt + generation.text
        return generation


def _as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    listed: list[Any] = list(prompts)
    if listed and isinstance(listed[0], (int, Mapping)):
        return [listed]
    return listed
