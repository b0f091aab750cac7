"""Logits of requests with adapters agree with PEFT's, beside requests of other adapters or none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from adapter_fixtures import EVERY_LINEAR, logits_of, save_adapter
from logits_harness import LogitsHarness
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from headrace.checkpoint.checkpoint import Checkpoint
from headrace.checkpoint.resolve import resolve
from headrace.engine.build import build_engine
from headrace.engine.settings import EngineSettings
from headrace.kernels import native
from headrace.link.errors import ConfigurationError
from headrace.link.messages import RequestOutput, Submit
from headrace.link.sampling import SamplingParams
from headrace.modeling.adapters.adapter_set import NO_ADAPTER
from headrace.modeling.adapters.load import load_adapters, read_adapters
from headrace.modeling.adapters.peft_directory import CONFIG_FILE, WEIGHTS_FILE
from headrace.modeling.backends.backend import Backend
from headrace.modeling.backends.native_cpu import NativeCpuBackend
from headrace.modeling.backends.torch_backend import TorchBackend
from headrace.modeling.loading.load import load_decoder

VOCABULARY = 131
CONFIGS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "everything": {
        "r": 7,
        "lora_alpha": 5,
        "use_rslora": True,
        "target_modules": EVERY_LINEAR,
        "rank_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 20},
        "alpha_pattern": {"up_proj": 17},
    },
    "one layer": {"r": 2, "target_modules": ["k_proj", "down_proj"], "layers_to_transform": [1]},
}


@dataclass
class Served:
    """A base model, its adapters on disk, and PEFT's models by adapter index."""

    checkpoint: Checkpoint
    directories: dict[str, str]
    models: dict[int, torch.nn.Module]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    torch.manual_seed(11)
    root = tmp_path_factory.mktemp("adapters")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, head_dim=32,
        initializer_range=0.25,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(root / "base")
    models: dict[int, torch.nn.Module] = {NO_ADAPTER: model}
    directories = {}
    for index, (name, fields) in enumerate(CONFIGS.items()):
        directories[name] = str(root / name)
        models[index] = save_adapter(copy.deepcopy(model), root / name, **fields)
    return Served(resolve(str(root / "base")), directories, models)


def backends(dtype: torch.dtype) -> list[Backend]:
    found: list[Backend] = [TorchBackend(torch.device("cpu"), dtype)]
    if native.reason_unavailable() is None:
        found.append(NativeCpuBackend(dtype, 2))  # type: ignore[arg-type]
    return found


def harness_of(served: Served, backend: Backend, with_adapters: bool = True) -> LogitsHarness:
    config = served.checkpoint.config
    decoder = load_decoder(served.checkpoint, backend.operations)
    found = read_adapters(served.directories, config, max_rank=20)
    adapters = load_adapters(found, config, backend.operations) if with_adapters else None
    return LogitsHarness(config, decoder, backend, adapters=adapters)


def random_ids(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()


# Rows' adapters: two rows of one adapter, two of none, and each of the others.
ADAPTERS = [0, NO_ADAPTER, 1, 2, 0, NO_ADAPTER]
LENGTHS = [41, 30, 50, 9, 27, 44]


def mixed_logits(harness: LogitsHarness, adapters: list[int]) -> list[torch.Tensor]:
    """Logits of rows that share steps: prompts in chunks of unequal length, then single tokens."""
    prompts = [random_ids(length, seed) for seed, length in enumerate(LENGTHS)]
    for row, adapter in enumerate(adapters):
        harness.set_blocks(row, list(range(row * 4, row * 4 + 4)))
        harness.set_adapter(row, adapter)
    parts: list[list[torch.Tensor]] = [[] for _ in prompts]
    done = [0] * len(prompts)
    for step in range(60):
        batch = []
        for row, prompt in enumerate(prompts):
            # A row joins late, works off its prompt in chunks, then goes on token by token.
            count = 0 if step < row else (11 + row) if step < row + 2 else 1
            chunk = prompt[done[row] : done[row] + count]
            if chunk:
                batch.append((row, done[row], chunk))
        for (row, _, chunk), logits in zip(
            batch, harness.step(batch) if batch else [], strict=True
        ):
            parts[row].append(logits)
            done[row] += len(chunk)
    assert done == LENGTHS
    return [torch.cat(part) for part in parts]


def test_float32_logits_are_pefts(served: Served) -> None:
    for backend in backends(torch.float32):
        results = mixed_logits(harness_of(served, backend), ADAPTERS)
        for row, (adapter, logits) in enumerate(zip(ADAPTERS, results, strict=True)):
            expected = logits_of(served.models[adapter], random_ids(LENGTHS[row], row))
            error = (logits - expected).abs().max() / expected.std()
            print(f"{backend.name} row {row} adapter {adapter}: worst {error:.1e} of std")
            assert error < 2e-4, (backend.name, row)


def test_adapters_change_what_is_computed(served: Served) -> None:
    ids = random_ids(20, 1)
    base = logits_of(served.models[NO_ADAPTER], ids)
    for index in range(len(CONFIGS)):
        change = (logits_of(served.models[index], ids) - base).abs().mean() / base.std()
        assert change > 0.05, index


def test_bfloat16_logits_are_no_worse_than_pefts_own(served: Served) -> None:
    theirs: dict[int, float] = {}
    exact: dict[int, torch.Tensor] = {}
    for row, adapter in enumerate(ADAPTERS):
        ids = random_ids(LENGTHS[row], row)
        exact[row] = logits_of(served.models[adapter], ids)
        narrow = copy.deepcopy(served.models[adapter])
        for module in narrow.modules():
            # Not the whole model, whose rotary frequencies would be rounded too.
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding | LlamaRMSNorm):
                module.to(torch.bfloat16)
        rounded = logits_of(narrow, ids)
        theirs[row] = float((rounded - exact[row]).abs().mean() / exact[row].std())
    for backend in backends(torch.bfloat16):
        results = mixed_logits(harness_of(served, backend), ADAPTERS)
        ours = [
            float((logits - exact[row]).abs().mean() / exact[row].std())
            for row, logits in enumerate(results)
        ]
        print(backend.name, [f"{our:.1e}/{theirs[row]:.1e}" for row, our in enumerate(ours)])
        assert sum(ours) < 1.2 * sum(theirs.values()), backend.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_without_adapter_is_bitwise_what_it_was(
    served: Served, dtype: torch.dtype
) -> None:
    for backend in backends(dtype):
        if backend.name != "native":
            # torch's products of few rows differ bitwise from those of many anyway.
            continue
        without = mixed_logits(
            harness_of(served, backend, with_adapters=False), [NO_ADAPTER] * len(ADAPTERS)
        )
        beside = mixed_logits(harness_of(served, backend), ADAPTERS)
        for row, adapter in enumerate(ADAPTERS):
            assert torch.equal(without[row], beside[row]) == (adapter == NO_ADAPTER), row


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_an_engine_that_preempts_and_reuses_prefixes_computes_what_peft_does(
    served: Served, backend: str
) -> None:
    if backend == "native" and native.reason_unavailable() is not None:
        pytest.skip(str(native.reason_unavailable()))
    settings = EngineSettings(
        backend=backend, device="cpu", dtype="float32", threads=1, max_batch_size=8,
        max_batch_prefill_tokens=24, max_total_tokens=96, max_batch_total_tokens=256,
        lora_adapters=served.directories,
    )  # fmt: skip
    engine, ready = build_engine(served.checkpoint, settings)
    assert ready.adapters == list(CONFIGS)
    shared = random_ids(34, 77)
    chosen = [None, *CONFIGS, None, *CONFIGS]
    prompts = [[*shared, 5 + index // 4] for index in range(len(chosen))]
    outputs: dict[int, list[RequestOutput]] = {index: [] for index in range(len(chosen))}

    def finish() -> None:
        while engine.has_work:
            for output in engine.step().outputs:
                outputs[output.request_id].append(output)

    for index, (adapter, prompt) in enumerate(zip(chosen, prompts, strict=True)):
        sampling = SamplingParams(max_new_tokens=40, ignore_eos=True, logprobs=True, seed=0)
        engine.submit(
            Submit(request_id=index, token_ids=prompt, sampling=sampling, adapter=adapter)
        )
        if index == 3:
            # The second half then finds the first half's prefixes.
            finish()
    finish()
    assert engine.stats().preemptions_total > 0
    assert engine.stats().prefix_hit_tokens_total > 0
    engine.check_integrity()
    names = list(CONFIGS)
    for index, adapter in enumerate(chosen):
        tokens = [token for output in outputs[index] for token in output.token_ids]
        model = served.models[NO_ADAPTER if adapter is None else names.index(adapter)]
        logits = logits_of(model, [*prompts[index], *tokens])[len(prompts[index]) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        ours = torch.tensor([value for output in outputs[index] for value in output.logprobs])
        assert len(tokens) == 40
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)
        # Greedy: the token is PEFT's own choice, or as good.
        best = logits.log_softmax(-1).max(-1).values
        assert (best - expected).max() < 2e-3


# What is refused.


@pytest.fixture
def copied(served: Served, tmp_path: Path) -> Path:
    """A copy of an adapter that a test may spoil."""
    source = Path(served.directories["everything"])
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    path = directory / WEIGHTS_FILE
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in change(tensors).items()}, path
    )


def refusal(served: Served, directory: Path, max_rank: int = 64) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_adapters({"mine": str(directory)}, served.checkpoint.config, max_rank)
    message = str(caught.value)
    assert message.startswith("adapter `mine`: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_dora": True}, "DoRA is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "lora_only"}, "bias must be `none`, got 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"peft_type": "IA3"}, "peft_type must be LORA, got 'IA3'"),
        ({"task_type": "SEQ_CLS"}, "task_type must be CAUSAL_LM"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"r": 9}, "says 9"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number, got 'much'"),
        ({"alpha_pattern": {"(": 3}}, "alpha_pattern must map patterns to numbers"),
    ],
    ids=str,
)
def test_configurations_that_are_not_plain_lora_are_refused(
    served: Served, copied: Path, changes: dict[str, Any], expected: str
) -> None:
    edit_config(copied, **changes)
    assert expected in refusal(served, copied)


def test_directories_that_are_none_are_refused(served: Served, tmp_path: Path) -> None:
    assert "does not exist" in refusal(served, tmp_path / "absent")
    assert f"{CONFIG_FILE} is missing" in refusal(served, tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{")
    assert f"{WEIGHTS_FILE} is missing" in refusal(served, tmp_path)
    assert "is not a directory" in refusal(served, tmp_path / CONFIG_FILE)


def test_ranks_above_the_limit_are_refused(served: Served, copied: Path) -> None:
    assert "rank 20 of `model.layers.1.self_attn.q_proj` is above --max-lora-rank 19" in refusal(
        served, copied, max_rank=19
    )


PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def test_adapters_of_other_models_are_refused(served: Served, copied: Path) -> None:
    edit_config(copied, base_model_name_or_path="other/model")

    def wider(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: torch.randn(tensor.shape[0], 128) if name == f"{PREFIX}.lora_A.weight" else tensor
            for name, tensor in tensors.items()
        }

    edit_tensors(copied, wider)
    message = refusal(served, copied)
    assert "has shape (7, 128), the model needs (rank, 64)" in message
    assert "trained on `other/model`" in message

    def deeper(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("layers.0.", "layers.30."): t for name, t in tensors.items()}

    edit_tensors(copied, deeper)
    assert "no linear `model.layers.30." in refusal(served, copied)


def test_a_base_model_on_this_machine_must_have_the_served_shapes(
    served: Served, copied: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    config = json.loads((served.checkpoint.path / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    edit_config(copied, base_model_name_or_path=str(base))
    assert "has num_layers 5, the model has 3" in refusal(served, copied)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (f"{PREFIX}.lora_B.weight", f"{PREFIX}.lora_magnitude_vector", "is not supported"),
        (f"{PREFIX}.lora_B.weight", None, "lora_B.weight` is missing"),
        (
            f"{PREFIX}.lora_A.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "adapters on embeddings are not supported",
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj",
            "base_model.model.lm_head",
            "adapters on `lm_head` are not supported",
        ),
    ],
    ids=["magnitude", "half", "embedding", "head"],
)
def test_tensors_that_mean_something_else_are_refused(
    served: Served, copied: Path, old: str, new: str | None, expected: str
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name.replace(old, new or ""): tensor
            for name, tensor in tensors.items()
            if new is not None or name != old
        }

    edit_tensors(copied, rename)
    assert expected in refusal(served, copied)


def test_numbers_that_are_none_are_refused(served: Served, copied: Path) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[f"{PREFIX}.lora_B.weight"][0, 0] = float("nan")
        return tensors

    edit_tensors(copied, poison)
    config = served.checkpoint.config
    found = read_adapters({"mine": str(copied)}, config, 64)
    with pytest.raises(ConfigurationError, match=r"adapter `mine`: tensor .* NaN or infinite"):
        load_adapters(found, config, TorchBackend(torch.device("cpu"), torch.float32).operations)
