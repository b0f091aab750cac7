"""Whole models on the GPU backend against Transformers in float32 on the same rounded weights.

A script for a machine with a GPU: prompts of mixed lengths are served together with chunked
prefill and captured decode graphs; every sampled token is compared, teacher-forced, with the
reference's argmax, and the log-probabilities of chosen and top tokens with its logits. Prints one
JSON line a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.auto import AutoModelForCausalLM

from headrace.checkpoint.hf_config import hf_config
from headrace.link.sampling import SamplingParams
from headrace.modeling.backends.triton_gpu import TritonBackend
from headrace.modeling.loading.load import build_decoder
from headrace.modeling.runner import ModelRunner, RunnerLimits, ScheduledTokens, StepResult

_COMMON = {
    "vocab_size": 1003, "num_hidden_layers": 4, "max_position_embeddings": 1024,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama 128": LlamaConfig(
        hidden_size=1024, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=2,
        **_COMMON,
    ),
    "llama 64 tied 9/3": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True, **_COMMON,
    ),
    "mistral window": MistralConfig(
        hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=2,
        head_dim=64, sliding_window=40, **_COMMON,
    ),
    "qwen2 biases": Qwen2Config(
        hidden_size=896, intermediate_size=1024, num_attention_heads=14, num_key_value_heads=2,
        **_COMMON,
    ),
    "qwen3 head norms": Qwen3Config(
        hidden_size=512, intermediate_size=1024, num_attention_heads=8, num_key_value_heads=4,
        head_dim=128, **_COMMON,
    ),
}  # fmt: skip


class StateReader:
    """Reads weights out of a Transformers model's state."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self._state = state

    def read(self, name: str) -> torch.Tensor:
        return self._state[name]

    def read_vector(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        return self._state[name].to(dtype)


def compare(
    name: str, dtype: torch.dtype, prompts: list[list[int]], new_tokens: int
) -> dict[str, object]:
    """Serve ``prompts`` together; what differed from the reference."""
    configuration = CONFIGS[name]
    torch.manual_seed(torch.seed() & 0xFFFF)
    reference = AutoModelForCausalLM.from_config(configuration, attn_implementation="eager")
    reference = reference.to("cuda", torch.float32).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.05)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.to(dtype).float())
    raw = json.loads(configuration.to_json_string(use_diff=False))
    config = hf_config(raw, Path("config.json"))
    backend = TritonBackend(torch.device("cuda"), dtype, tuning="off")
    state = {key: value.to(dtype) for key, value in reference.state_dict().items()}
    decoder = build_decoder(config, StateReader(state), backend.operations)
    budget = 192
    runner = ModelRunner(
        config, decoder, backend, RunnerLimits(budget, len(prompts), 1024, 16, 64 * len(prompts))
    )
    runner.warm_up()
    runner.capture_graphs()
    sampling = SamplingParams(logprobs=True, top_n_tokens=4)
    generated = [[] for _ in prompts]
    details = [[] for _ in prompts]
    for row, prompt in enumerate(prompts):
        runner.set_row(row, sampling, prompt, ())
        runner.set_blocks(row, 0, list(range(row * 64, (row + 1) * 64)))

    def note(batch: list[ScheduledTokens], result: StepResult) -> None:
        sampled = [entry.row for entry in batch if entry.samples]
        for number, row in enumerate(sampled):
            generated[row].append(result.token_ids[number])
            details[row].append((result.logprobs[number], result.top_tokens[number]))

    computed = [0] * len(prompts)
    while any(len(tokens) < new_tokens for tokens in generated):
        batch, left = [], budget
        for row, prompt in enumerate(prompts):
            if left and generated[row] and len(generated[row]) < new_tokens:
                start = len(prompt) + len(generated[row]) - 1
                batch.append(ScheduledTokens(row, start, None, samples=True))
                left -= 1
        for row, prompt in enumerate(prompts):
            count = min(left, len(prompt) - computed[row], 100)
            if count > 0:
                start, computed[row] = computed[row], computed[row] + count
                done = computed[row] == len(prompt)
                batch.append(ScheduledTokens(row, start, prompt[start : start + count], done))
                left -= count
        note(batch, runner.execute(batch))
    errors, flips, compared = [], 0, 0
    tolerance = 0.0
    logits_of = []
    for prompt, tokens in zip(prompts, generated, strict=True):
        whole = torch.tensor([prompt + tokens[:-1]], device="cuda")
        with torch.no_grad():
            logits_of.append(reference(whole).logits[0, len(prompt) - 1 :].float())
    for row, logits in enumerate(logits_of):
        logprobs = logits.log_softmax(-1)
        for index, (chosen, top) in enumerate(details[row]):
            token = generated[row][index]
            errors.append(abs(chosen - float(logprobs[index, token])))
            errors += [abs(t.logprob - float(logprobs[index, t.token_id])) for t in top]
    spread = float(torch.cat(logits_of).std())
    tolerance = 4 * max(errors)
    for row, logits in enumerate(logits_of):
        best, second = logits.topk(2, dim=-1).values.unbind(-1)
        for index, token in enumerate(generated[row]):
            if float(best[index] - second[index]) > tolerance:
                compared += 1
                flips += int(logits[index].argmax()) != token
    return {
        "model": name, "dtype": str(dtype), "tokens": sum(map(len, generated)),
        "mean_error": sum(errors) / len(errors), "worst_error": max(errors), "logit_std": spread,
        "argmax_compared": compared, "argmax_differs": flips,
    }  # fmt: skip


def main() -> int:
    """Compare every configuration in both half precisions; 1 if one disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a configuration's name")
    only = parser.parse_args().only
    bad = 0
    generator = torch.Generator().manual_seed(torch.seed() & 0xFFFFFFFF)
    lengths = torch.randint(1, 400, (64,), generator=generator).tolist()
    prompts = [torch.randint(3, 1003, (n,), generator=generator).tolist() for n in lengths]
    for dtype in (torch.bfloat16, torch.float16):
        for name in (name for name in CONFIGS if only in name):
            result = compare(name, dtype, prompts, new_tokens=12)
            relative = result["worst_error"] / result["logit_std"]
            result["bad"] = bool(
                result["argmax_differs"]
                or not relative < (0.15 if dtype == torch.bfloat16 else 0.03)
            )
            bad += result["bad"]
            print(json.dumps(result), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
