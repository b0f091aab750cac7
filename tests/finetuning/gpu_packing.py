"""Packed rows of unequal documents against the documents alone, as a script for one GPU.

Prints one JSON line a check: relative errors of the adapters' gradients against stock PEFT in
float32 over documents alone.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from gpu_runs import LARGER
from tiny_model import write_tiny_model

from headrace.checkpoint.resolve import resolve
from headrace.finetuning.settings import FinetuneSettings
from headrace.finetuning.training.collate import NUM_TOKENS, Collator
from headrace.finetuning.training.model import build_model

LENGTHS = ((300, 17, 1, 130, 64), (5, 500, 2), (512,), (128, 128, 129, 126))
DEVICE = torch.device("cuda")


def built(model: Path, precision: str, fused: bool, checkpointing: bool = False) -> Any:
    settings = FinetuneSettings(
        data="",
        base_precision=precision,
        placement="single",
        dropout=0,
        fused=fused,
        target_modules=("all-linear",),
    )
    torch.manual_seed(0)
    made, unfused = build_model(settings, resolve(str(model)), "base", DEVICE)
    assert not unfused
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
            elif not parameter.requires_grad:
                # Every precision computes with the same weights.
                parameter.copy_(parameter.bfloat16())
    made.train()
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made


def gradients(model: Any, batches: list[dict[str, Any]], items: int) -> list[torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        on_device = {
            key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
            if key != NUM_TOKENS
        }
        with torch.autocast("cuda", torch.bfloat16, enabled=model.dtype is torch.bfloat16):
            loss = model(**on_device, num_items_in_batch=items, use_cache=False).loss
        loss.backward()
    return [p.grad.float() for p in model.parameters() if p.requires_grad]


def main() -> None:
    generator = torch.Generator().manual_seed(2)
    documents = [
        [torch.randint(3, 259, (n,), generator=generator).tolist() for n in row] for row in LENGTHS
    ]
    alone = [
        {"input_ids": d, "labels": [-100, *d[1:]], "lengths": [len(d)]}
        for row in documents
        for d in row
        if len(d) > 1
    ]
    packed = [
        {
            "input_ids": [token for d in row for token in d],
            "labels": [label for d in row for label in [-100, *d[1:]]],
            "lengths": [len(d) for d in row],
        }
        for row in documents
    ]
    items = sum(len(row["input_ids"]) - 1 for row in alone)
    single = [Collator(0, packed=False)([row]) for row in alone]
    together = [Collator(0, packed=True)(packed)]
    padded = [Collator(0, packed=False, multiple=64)(alone)]
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model", LARGER)
        reference = gradients(built(model, "fp32", fused=False), single, items)

        def check(name: str, made: Any, batches: list[dict[str, Any]], bound: float = 1.0) -> float:
            found = gradients(made, batches, items)
            error = max(
                float((one - other).norm() / other.norm())
                for one, other in zip(found, reference, strict=True)
            )
            line = {"check": name, "ok": error <= bound, "error": error, "bound": bound}
            print(json.dumps(line), flush=True)
            return error

        check("stock float32, packed", built(model, "fp32", False), together, 1e-3)
        # What bfloat16 costs by itself.
        bound = 1.1 * check("stock bfloat16, alone", built(model, "bf16", False), single)
        fused = built(model, "bf16", True)
        check("fused bfloat16, alone", fused, single, bound)
        check("fused bfloat16, packed", fused, together, bound)
        check("fused bfloat16, padded", fused, padded, bound)
        check("fused, recomputed, packed", built(model, "bf16", True, True), together, bound)


if __name__ == "__main__":
    main()
