"""Write the built-in model as a Hugging Face directory (bf16 safetensors), for peers that need one.

python benchmarks/peers/export_builtin.py MODEL.gguf OUT_DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def main() -> None:
    """See the module."""
    gguf, out = Path(sys.argv[1]), Path(sys.argv[2])
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = source.config
    # A model loaded from GGUF refuses to be saved: a fresh one takes over its weights.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict({k: v.to(torch.bfloat16) for k, v in source.state_dict().items()})
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)


if __name__ == "__main__":
    main()
