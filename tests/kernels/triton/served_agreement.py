"""The whole engine on a GPU against Transformers in float32 on the same rounded weights.

A script for a machine with a GPU, through the public ``LLM``: 64 prompts of mixed length at once,
chunked prefill, shared prefixes, a KV cache so small that sequences are preempted, captured graphs,
two steps in flight. Every sampled token is compared, teacher-forced: where it is not the
reference's most likely one, the reference's gap between the two must lie below the tolerance.
Rounds differ in prompts; a fault that comes and goes is a race. With ``--adapters`` prompts choose
among LoRA adapters and none, and the reference is PEFT's. With ``--whole-prompts`` a round serves
long prompts that a step takes whole: one, four of one length, five of different lengths. Prints one
JSON line a round.

    PYTHONPATH=src python tests/kernels/triton/served_agreement.py --rounds 3
    PYTHONPATH=src python tests/kernels/triton/served_agreement.py --adapters 3
    PYTHONPATH=src python tests/kernels/triton/served_agreement.py --whole-prompts
    HEADRACE_GRAPHS=off PYTHONPATH=src python tests/kernels/triton/served_agreement.py
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM

from headrace import LLM, SamplingParams
from headrace.hardware.switches import SWITCHES
from headrace.link.messages import EngineStats

VOCABULARY = 4001
NEW_TOKENS = 48


def export(directory: Path, dtype: torch.dtype, seed: int, device: str) -> LlamaForCausalLM:
    """A random model as a Hugging Face directory; its float32 reference on the GPU."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=8,
            num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=2048,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model = model.to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.04)
        # A residual stream that starts large: else rounding errors grow from layer to layer.
        model.model.embed_tokens.weight.normal_(0, 1)
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).float())
    model.to(dtype).save_pretrained(directory)
    Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0")).save(
        str(directory / "tokenizer.json")
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "bos_token": "w1"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return model.float().eval()


def with_adapters(
    model: LlamaForCausalLM, directory: Path, count: int, dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, str]]:
    """PEFT's model with random adapters of several ranks and targets, and where they lie."""
    import peft

    targets = (
        ["q_proj", "v_proj"],
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ["o_proj", "down_proj"],
    )
    adapted: peft.PeftModel | None = None
    for number in range(count):
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", r=8 << number % 3, target_modules=targets[number % 3]
        )
        if adapted is None:
            adapted = peft.get_peft_model(model, config, adapter_name="a0")
        else:
            adapted.add_adapter(f"a{number}", config)
    assert adapted is not None
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
                parameter.copy_(parameter.to(dtype).float())
    adapted.save_pretrained(str(directory / "adapters"))
    places = {f"a{i}": str(directory / "adapters" / f"a{i}") for i in range(count)}
    return adapted.float().eval(), places


def logits_with(reference: torch.nn.Module, ids: torch.Tensor, adapter: str | None) -> torch.Tensor:
    """The reference's float32 logits [1, T, vocab] with this adapter or none."""
    if not hasattr(reference, "disable_adapter"):
        return reference(ids).logits
    if adapter is None:
        with reference.disable_adapter():
            return reference(ids).logits
    reference.set_adapter(adapter)
    return reference(ids).logits


def prompts_of(rng: random.Random) -> list[list[int]]:
    """64 prompts of 1 to 700 tokens; half of them share one of three prefixes."""

    def ids(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    prefixes = [ids(100), ids(33), ids(260)]
    return [(prefixes[i % 3] if i % 2 else []) + ids(rng.randint(1, 440)) for i in range(64)]


def whole_prompts_of(rng: random.Random) -> list[list[list[int]]]:
    """Prompts that are served together, and of which nothing is cached."""
    lengths = [[rng.randint(1100, 1900)], [rng.randint(1100, 1900)] * 4]
    lengths.append([rng.randint(1100, 1900) for _ in range(5)])
    return [
        [[rng.randrange(3, VOCABULARY) for _ in range(length)] for length in group]
        for group in lengths
    ]


def compare(
    reference: torch.nn.Module,
    prompts: list[list[int]],
    adapters: list[str | None],
    generations: list[object],
) -> dict[str, object]:
    """What differed from the reference's logits and choices."""
    errors, flips = [], []
    near = 0
    for number, (prompt, adapter, generation) in enumerate(
        zip(prompts, adapters, generations, strict=True)
    ):
        whole = torch.tensor([prompt + generation.token_ids[:-1]], device=reference.device)
        with torch.no_grad():
            logits = logits_with(reference, whole, adapter)[0, len(prompt) - 1 :].float()
        logprobs = logits.log_softmax(-1)
        tokens = torch.tensor(generation.token_ids, device=reference.device)
        chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
        ours = torch.tensor(generation.logprobs, device=reference.device)
        errors += (chosen - ours).abs().tolist()
        best = logits.max(-1).values - logits.gather(-1, tokens[:, None])[:, 0]
        for step in best.nonzero()[:, 0].tolist():
            flips.append((float(best[step]), number, step))
    errors.sort()
    tolerance = 8 * errors[int(len(errors) * 0.99)]
    wrong = [flip for flip in flips if flip[0] > tolerance]
    near = len(flips) - len(wrong)
    return {
        "tokens": len(errors), "mean_error": sum(errors) / len(errors), "worst_error": errors[-1],
        "tolerance": tolerance, "near_ties": near, "wrong": len(wrong),
        "first_wrong": [(f"prompt {n}", f"token {s}", round(gap, 3)) for gap, n, s in wrong[:6]],
        "bad": bool(wrong) or not errors[-1] <= tolerance,
    }  # fmt: skip


def main() -> int:
    """Serve and compare; 1 if a round disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda", help="cpu: a dry run of this script")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--adapters", type=int, default=0, help="LoRA adapters to choose from")
    parser.add_argument("--whole-prompts", action="store_true", help="long prompts, not in chunks")
    arguments = parser.parse_args()
    off = [name for name in SWITCHES if os.environ.get(f"HEADRACE_{name}") == "off"]
    bad = 0
    with tempfile.TemporaryDirectory() as directory:
        dtype = getattr(torch, arguments.dtype)
        reference: torch.nn.Module = export(
            Path(directory), dtype, arguments.seed, arguments.device
        )
        places: dict[str, str] = {}
        if arguments.adapters:
            reference, places = with_adapters(reference, Path(directory), arguments.adapters, dtype)
        llm = LLM(
            directory, lora_adapters=places, device=arguments.device, backend=arguments.backend,
            dtype=arguments.dtype, max_batch_size=48,
            max_batch_prefill_tokens=8192 if arguments.whole_prompts else 192,
            max_batch_total_tokens=16384 if arguments.whole_prompts else 3200,
            max_total_tokens=2048 if arguments.whole_prompts else 1024,
        )  # fmt: skip
        before: EngineStats = llm.stats()
        for number in range(arguments.rounds):
            rng = random.Random(1000 * arguments.seed + number)
            groups = whole_prompts_of(rng) if arguments.whole_prompts else [prompts_of(rng)]
            prompts = [prompt for group in groups for prompt in group]
            params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=True)
            choices = [None, *places]
            chosen = [choices[index % len(choices)] for index in range(len(prompts))]
            generations = []
            for group in groups:
                served = chosen[len(generations) : len(generations) + len(group)]
                generations += llm.generate(group, params, adapter=served, progress=False)
            result = compare(reference, prompts, chosen, generations)
            after = llm.stats()
            result |= {
                "dtype": arguments.dtype, "round": number, "off": off,
                "adapters": len(places),
                "preemptions": after.preemptions_total - before.preemptions_total,
                "prefix_hits": after.prefix_hit_tokens_total - before.prefix_hit_tokens_total,
            }  # fmt: skip
            if not arguments.whole_prompts:
                reached = result["preemptions"] and result["prefix_hits"]
                result["bad"] = bool(result["bad"] or not reached)
            before = after
            bad += result["bad"]
            print(json.dumps(result), flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
