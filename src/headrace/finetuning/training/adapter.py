"""Low-rank adapters on the base, through PEFT."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from headrace.finetuning.settings import ALL_LINEAR, FinetuneSettings


def add_adapter(
    base: PreTrainedModel, settings: FinetuneSettings, base_name: str, *, keep_dtype: bool
) -> PeftModel:
    """Fresh adapters, or those of ``settings.adapter``, ready to be trained.

    Args:
        base: The frozen model.
        base_name: What the adapter's files name as their base.
        keep_dtype: Adapters have the base's dtype; otherwise float32.
    """
    base.config._name_or_path = base_name
    if settings.adapter is not None:
        return PeftModel.from_pretrained(
            base,
            str(Path(settings.adapter).expanduser()),
            is_trainable=True,
            autocast_adapter_dtype=not keep_dtype,
        )
    targets = settings.target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=ALL_LINEAR if ALL_LINEAR in targets else list(targets),
        base_model_name_or_path=base_name,
    )
    return get_peft_model(base, config, autocast_adapter_dtype=not keep_dtype)
