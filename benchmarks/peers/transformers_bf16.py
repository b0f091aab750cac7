"""Transformers in bf16 on the workload: python transformers_bf16.py HF_DIR."""

from __future__ import annotations

import sys

import torch
import transformers
from transformers import AutoModelForCausalLM
from workload import measure, report


def main() -> None:
    """See the module."""
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    torch.set_num_threads(2)

    @torch.inference_mode()
    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert out.shape[1] == ids.shape[1] + new_tokens

    report("transformers", transformers.__version__, "bf16", measure(generate, largest_repeats=1))


if __name__ == "__main__":
    main()
