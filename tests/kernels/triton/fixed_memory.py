"""After ready a GPU engine takes no device memory and compiles nothing: a script for a GPU.

Drives the mixed load of ``tests/engine/mixed_load.py``, which reaches every limit, and compares
torch's peak of reserved memory, the driver's free memory and the number of compiled kernels with
what they were when the engine was ready. Prints one JSON line; 1 if anything moved.

    PYTHONPATH=src python tests/kernels/triton/fixed_memory.py llama3-8b --kv-tokens 60000
    PYTHONPATH=src python tests/kernels/triton/fixed_memory.py llama3-8b --adapters 2
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).parents[2] / "engine"))

from mixed_load import drive, requests, short_of

from headrace.checkpoint.config import ModelConfig
from headrace.checkpoint.shapes import shape
from headrace.engine.build import build_engine
from headrace.engine.settings import EngineSettings


class ShapeCheckpoint:
    """A known architecture whose weights are drawn."""

    eos_token_ids = (2,)

    def __init__(self, name: str) -> None:
        self.model_id = name
        self.path = Path(name)
        self.config = shape(name)


def write_adapter(directory: Path, config: ModelConfig, rank: int) -> None:
    """A PEFT adapter on q and v whose factors are drawn."""
    wide, narrow, hidden = config.q_size, config.kv_size, config.hidden_size
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(config.num_layers):
        for name, width in (("q_proj", wide), ("v_proj", narrow)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = 0.1 * torch.randn(rank, hidden)
            tensors[f"{stem}.lora_B.weight"] = 0.1 * torch.randn(width, rank)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    facts = {
        "peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj"], "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(facts))


def compiled_kernels() -> dict[str, int]:
    """Variants of each Triton kernel of this process."""
    functions = [thing for thing in gc.get_objects() if isinstance(thing, JITFunction)]
    return {
        f"compiled {f.__name__}": sum(len(cache[0]) for cache in f.device_caches.values())
        for f in functions
    }


def state() -> dict[str, int]:
    """What must not move."""
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    return {
        "reserved": torch.cuda.max_memory_reserved(),
        "free": free,
        "allocations": torch.cuda.memory_stats()["num_device_alloc"],
        **compiled_kernels(),
    }


def main() -> int:
    """Serve the load twice, with adapters if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="llama3-8b")
    parser.add_argument("--kv-tokens", type=int, default=60_000, help="so few that it is full")
    parser.add_argument("--adapters", type=int, default=0, help="so many, drawn, ranks 8 and 16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        adapters = {
            f"a{number}": Path(directory) / f"a{number}" for number in range(arguments.adapters)
        }
        for number, path in enumerate(adapters.values()):
            write_adapter(path, shape(arguments.model), 8 << number % 2)
        return serve_twice(arguments.model, arguments.kv_tokens, adapters)


def serve_twice(model: str, kv_tokens: int, adapters: dict[str, Path]) -> int:
    """1 if memory or kernels moved, or a limit was not reached."""
    checkpoint: Any = ShapeCheckpoint(model)
    engine, ready = build_engine(
        checkpoint,
        EngineSettings(
            random_weights_seed=0, prefix_cache=False, max_batch_total_tokens=kv_tokens,
            lora_adapters={name: str(path) for name, path in adapters.items()},
        ),
    )  # fmt: skip
    budget = min(8192, ready.max_input_tokens)
    before = state()
    result: dict[str, Any] = {"model": model, "adapters": ready.adapters}
    for number in range(2):
        load = requests(ready, random.Random(number), first_id=1 + 100_000 * number)
        reached = drive(engine, load)
        result["short_of"] = short_of(reached, ready, len(load), budget)
        result["preemptions"] = reached.preemptions
    after = state()
    differences = {name: after[name] - before.get(name, 0) for name in after}
    moved = {name: difference for name, difference in differences.items() if difference}
    result |= {"requests": len(load), "reserved_mib": before["reserved"] // 2**20, "moved": moved}
    print(json.dumps(result), flush=True)
    return int(bool(moved or result["short_of"]))


if __name__ == "__main__":
    sys.exit(main())
