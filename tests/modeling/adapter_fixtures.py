"""Adapters that PEFT makes, random in both factors, and PEFT's own logits with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(
    model: PreTrainedModel, directory: Path, scale: float = 0.1, **config: Any
) -> torch.nn.Module:
    """Write an adapter of these ``LoraConfig`` fields; PEFT's model with it, float32.

    Args:
        scale: Standard deviation of ``lora_B``, which PEFT starts at zero.
    """
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, scale if "lora_B" in name else 0.3)
                # Numbers that bfloat16 can hold, as those of the base model.
                parameter.copy_(parameter.bfloat16())
    adapted.save_pretrained(str(directory))
    return adapted


@torch.no_grad()
def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, vocab] float32."""
    result: torch.Tensor = model(torch.tensor([ids])).logits[0].float()
    return result
