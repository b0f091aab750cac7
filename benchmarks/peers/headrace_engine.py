"""headrace's engine alone on the workload: python headrace_engine.py MODEL.gguf bf16|q4_1."""

from __future__ import annotations

import sys

from workload import measure, report

from headrace import LLM, SamplingParams, __version__


def main() -> None:
    """See the module."""
    model, weights = sys.argv[1:]
    llm = LLM(model, packed_weights=weights != "bf16", prefix_cache=False)

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        generations = llm.generate(prompts, params, progress=False)
        if any(len(generation.token_ids) != new_tokens for generation in generations):
            raise RuntimeError("a generation is too short")

    report("headrace", __version__, weights, measure(generate, repeats=5))


if __name__ == "__main__":
    main()
