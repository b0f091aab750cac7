"""Stock PEFT and the fused form over the same base weights, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from headrace.benchmark.finetuning.loop import StepTimes, TrainingLoop
from headrace.benchmark.finetuning.stock_four_bit import (
    as_loaded_in_4_bits,
    bitsandbytes_is_there,
    bitsandbytes_linear,
)
from headrace.benchmark.finetuning.trainer_loop import trainer_step_ms
from headrace.benchmark.finetuning.workloads import Workload
from headrace.finetuning.base_precision.convert import Converter, converter
from headrace.finetuning.base_precision.precision import BasePrecision
from headrace.finetuning.fused.apply import fuse
from headrace.link.errors import ConfigurationError

OURS, STOCK = "headrace", "peft"
LOSS_TOLERANCE = 0.02
LossPair = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class AdapterOptions:
    """The adapters and the optimizer of the reference workload.

    Attributes:
        rank: r.
        alpha: Numerator of the scaling.
        dropout: Of the adapters' input.
        targets: Names of linears.
        learning_rate: At the first step.
    """

    rank: int = 8
    alpha: int = 32
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    learning_rate: float = 3e-3


@dataclass(frozen=True, slots=True)
class Measurement:
    """One system on one workload.

    Attributes:
        system: ``OURS`` or ``STOCK``.
        workload: What was computed.
        times: ``None`` where memory did not suffice.
        losses: Of the first steps without dropout.
        trainer_ms: Steps in the trainer of ``headrace finetune``, see ``trainer_step_ms``.
    """

    system: str
    workload: Workload
    times: StepTimes | None
    losses: list[float]
    trainer_ms: list[float] = field(default_factory=list)


class Bench:
    """Measures workloads; the base is made once for each precision.

    Args:
        make_base: ``(title, converter of the linears) -> frozen model``.
        vocab_size: Of random ids.
        adapters: Their sizes.
        stock: Measure stock PEFT too: over bf16, and over bitsandbytes' 4 bits where that is
            installed.
        keep_transposed: FP8: see ``Fp8Linear``.
        warmups: Steps before those that count.
        steps: That count.
        loss_steps: Steps without dropout whose losses are compared; 0: none.
        trainer: Measure ours in the trainer too.
        seed: Of adapters, rows and dropout.
    """

    def __init__(
        self,
        make_base: Callable[[str, Converter | None], PreTrainedModel],
        vocab_size: int,
        adapters: AdapterOptions,
        stock: bool,
        keep_transposed: bool,
        warmups: int,
        steps: int,
        loss_steps: int,
        trainer: bool,
        seed: int,
    ) -> None:
        self._make_base = make_base
        self._vocab_size = vocab_size
        self._adapters = adapters
        self._stock = stock
        self._keep_transposed = keep_transposed
        self._warmups = warmups
        self._steps = steps
        self._loss_steps = loss_steps
        self._trainer = trainer
        self._seed = seed

    def measure(self, workloads: Iterable[Workload]) -> Iterator[Measurement]:
        """Every workload in its order of precisions: stock first, then fused, over one base."""
        ordered = sorted(
            workloads, key=lambda workload: list(BasePrecision).index(workload.precision)
        )
        for precision, group in groupby(ordered, key=lambda workload: workload.precision):
            chosen = list(group)
            if self._stock and precision is BasePrecision.NF4 and bitsandbytes_is_there():
                yield from self._stock_over_bitsandbytes(chosen)
            convert = converter(precision, self._keep_transposed)
            model = self._with_adapters(self._make_base(precision.value, convert))
            start = _adapters_of(model)
            if self._stock and precision is BasePrecision.BF16:
                for workload in chosen:
                    yield self._measure_one(STOCK, model, start, workload)
            fuse(model)
            for workload in chosen:
                yield self._measure_one(OURS, model, start, workload)
            del model, start
            _release()

    def _stock_over_bitsandbytes(self, workloads: list[Workload]) -> Iterator[Measurement]:
        base = self._make_base("bitsandbytes' 4bit", bitsandbytes_linear)
        model = self._with_adapters(as_loaded_in_4_bits(base))
        start = _adapters_of(model)
        for workload in workloads:
            yield self._measure_one(STOCK, model, start, workload)
        del base, model, start
        _release()

    def _with_adapters(self, base: PreTrainedModel) -> Any:
        torch.manual_seed(self._seed)
        options = self._adapters
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=options.rank,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=list(options.targets),
        )
        model = get_peft_model(base, config)
        return model.train()

    def _loop(self, model: Any, start: dict[str, torch.Tensor], workload: Workload) -> TrainingLoop:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])
        if workload.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        rate = self._adapters.learning_rate
        return TrainingLoop(model, workload, self._vocab_size, rate, self._seed)

    def _measure_one(
        self, system: str, model: Any, start: dict[str, torch.Tensor], workload: Workload
    ) -> Measurement:
        losses: list[float] = []
        trainer_ms: list[float] = []
        times = None
        try:
            if self._loss_steps:
                with _without_dropout(model):
                    losses = self._loop(model, start, workload).losses(self._loss_steps)
            times = self._loop(model, start, workload).time(self._warmups, self._steps)
            if self._trainer and system == OURS:
                trainer_ms = trainer_step_ms(
                    model, workload, self._vocab_size, self._adapters.learning_rate, self._seed
                )
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
        _release()
        return Measurement(system, workload, times, losses, trainer_ms)


def _adapters_of(model: Any) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


class _without_dropout:  # noqa: N801
    """Adapters compute without dropout inside the ``with`` block."""

    def __init__(self, model: Any) -> None:
        self._dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
        self._before = [module.p for module in self._dropouts]

    def __enter__(self) -> None:
        for module in self._dropouts:
            module.p = 0.0

    def __exit__(self, *_: object) -> None:
        for module, probability in zip(self._dropouts, self._before, strict=True):
            module.p = probability


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_losses(measurements: Iterable[Measurement]) -> None:
    """Ours and stock PEFT's losses without dropout agree wherever both were measured.

    Raises:
        ConfigurationError: Names the workload, the step and both losses.
    """
    found = {(m.system, m.workload): m.losses for m in measurements}
    for (system, workload), losses in found.items():
        theirs = found.get((STOCK, workload), [])
        if system == STOCK:
            continue
        for index, (mine, other) in enumerate(zip(losses, theirs, strict=False)):
            if abs(mine - other) > LOSS_TOLERANCE:
                raise ConfigurationError(
                    f"{workload.name}, step {index}: loss {mine:.4f}, stock PEFT's is {other:.4f}"
                )
