"""What is generated under the hardest scheduling agrees with Transformers, token by token.

32 prompts at once, prefill in small chunks, shared prefixes and a KV cache so small that
sequences are preempted and recomputed. The reference is Transformers in float32 with the very
same dequantized weights, teacher-forced over prompt and output.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from headrace import LLM, SamplingParams
from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.modeling.loading.gguf_dequantize import dequantize
from headrace.modeling.loading.tensor_reader import TensorReader
from headrace.modeling.operations import GGUFBlocks

NEW_TOKENS = 16
Reference = Callable[[list[int], list[int]], torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return resolve(None)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> Reference:
    """``reference(prompt, output)``: the logits that each token of the output was chosen by.

    They are of the built-in model in Transformers, float32, from our own dequantized tensors. That
    these equal what the ``gguf`` package makes of the file is tested with the loader.
    """
    config = checkpoint.config
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    reader = TensorReader(checkpoint.tensors, torch.device("cpu"))
    state = {}
    for name in checkpoint.tensors:
        part = reader.read(name)
        state[name] = (
            dequantize(part, torch.float32) if isinstance(part, GGUFBlocks) else part.float()
        )
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    model.load_state_dict(state)
    model.eval()
    # A prompt is read once, and most outputs are the same whatever computed them.
    prompts: dict[tuple[int, ...], DynamicCache] = {}
    known: dict[tuple[int, ...], torch.Tensor] = {}

    def read(prompt: list[int]) -> DynamicCache:
        """Keys and values of all but the prompt's last token."""
        if tuple(prompt) not in prompts:
            prompts[tuple(prompt)] = cache = DynamicCache(config=model.config)
            model(torch.tensor([prompt[:-1]]), past_key_values=cache, logits_to_keep=1)
        return prompts[tuple(prompt)]

    def logits(prompt: list[int], output: list[int]) -> torch.Tensor:
        key = (len(prompt), *prompt, *output)
        if key not in known:
            with torch.inference_mode():
                cache = read(prompt)
                rows = model(torch.tensor([prompt[-1:] + output]), past_key_values=cache)
                cache.crop(-len(output) - 1)
            known[key] = rows.logits[0, :-1]
        return known[key]

    return logits


def hard_prompts(vocab_size: int) -> list[list[int]]:
    """32 prompts of mixed length; half of them share one of two long prefixes."""
    rng = random.Random(5)

    def ids(length: int) -> list[int]:
        return [rng.randrange(100, vocab_size) for _ in range(length)]

    prefixes = [ids(64), ids(48)]
    return [(prefixes[i % 2] if i % 4 < 2 else []) + ids(rng.randint(3, 60)) for i in range(32)]


@pytest.mark.parametrize(
    ("backend", "dtype", "packed_weights", "kv_cache_dtype", "tolerance"),
    [
        ("torch", "float32", False, "auto", 0.01),
        ("native", "float32", False, "auto", 0.01),
        ("native", "bfloat16", False, "auto", 0.6),
        ("native", "bfloat16", True, "auto", 1.0),
        ("native", "float32", False, "int8", 1.0),
    ],
    ids=["torch-float32", "native-float32", "native-bfloat16", "native-packed", "native-int8-kv"],
)
def test_generated_tokens_agree_with_transformers(
    checkpoint: Checkpoint,
    reference: Reference,
    backend: str,
    dtype: str,
    packed_weights: bool,
    kv_cache_dtype: str,
    tolerance: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llm = LLM(
        backend=backend,
        dtype=dtype,
        packed_weights=packed_weights,
        kv_cache_dtype=kv_cache_dtype,
        max_batch_size=16,
        max_batch_prefill_tokens=40,
        max_batch_total_tokens=688,
    )
    prompts = hard_prompts(checkpoint.config.vocab_size)
    params = SamplingParams(
        max_new_tokens=NEW_TOKENS, ignore_eos=True, logprobs=True, top_n_tokens=2
    )
    generations = llm.generate(prompts, params, progress=False)
    stats = llm.stats()
    assert stats.preemptions_total > 0, "the cache was meant to be too small"
    assert stats.prefix_hit_tokens_total > 0, "prefixes were meant to be shared"
    assert stats.kv_blocks_used == 0

    errors: list[float] = []
    close_calls = 0
    for prompt, generation in zip(prompts, generations, strict=True):
        assert len(generation.token_ids) == NEW_TOKENS
        logits = reference(prompt, generation.token_ids)
        assert len(logits) == NEW_TOKENS
        logprobs = torch.log_softmax(logits, dim=-1)
        best, second = logits.topk(2).values.unbind(-1)
        for step, token in enumerate(generation.token_ids):
            errors.append(abs(generation.logprobs[step] - float(logprobs[step, token])))
            if token != int(logprobs[step].argmax()):
                close_calls += 1
                gap = float(best[step] - second[step])
                assert gap <= tolerance, (
                    f"token {step} differs though the reference prefers its own by {gap}"
                )
    packed = " packed" if packed_weights else ""
    with capsys.disabled():
        print(
            f"\n{backend} {dtype}{packed}, KV {kv_cache_dtype}: log-probability error mean "
            f"{sum(errors) / len(errors):.2e} worst {max(errors):.2e}; "
            f"{close_calls} near ties of {len(errors)} tokens"
        )
    assert max(errors) < tolerance
