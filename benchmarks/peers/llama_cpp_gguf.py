"""llama.cpp on the workload: python llama_cpp_gguf.py MODEL.gguf WEIGHTS_LABEL.

Its environment: ``CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36``. The batch
is decoded through its own C interface, one sequence id a prompt.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
from llama_cpp import (
    llama_backend_init,
    llama_batch_init,
    llama_context_default_params,
    llama_decode,
    llama_get_logits_ith,
    llama_get_memory,
    llama_init_from_model,
    llama_memory_clear,
    llama_model_default_params,
    llama_model_get_vocab,
    llama_model_load_from_file,
    llama_vocab_n_tokens,
)
from workload import measure, report

MAX_TOKENS = 32 * 128


def main() -> None:
    """See the module."""
    import numpy as np

    llama_backend_init()
    model = llama_model_load_from_file(sys.argv[1].encode(), llama_model_default_params())
    params = llama_context_default_params()
    params.n_ctx = 32 * 272
    params.n_batch = MAX_TOKENS
    params.n_ubatch = 512
    params.n_seq_max = 32
    params.n_threads = params.n_threads_batch = 2
    context = llama_init_from_model(model, params)
    vocab = llama_vocab_n_tokens(llama_model_get_vocab(model))
    batch = llama_batch_init(MAX_TOKENS, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wants_logits) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits
        if llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def argmax(index: int) -> int:
        pointer = llama_get_logits_ith(context, index)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * vocab)).contents
        return int(np.frombuffer(address, dtype=np.float32).argmax())

    def generate(prompts: list[list[int]], new_tokens: int) -> None:
        llama_memory_clear(llama_get_memory(context), True)
        entries, lasts = [], []
        for sequence, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                entries.append((token, position, sequence, position == len(prompt) - 1))
            lasts.append(len(entries) - 1)
        decode(entries)
        tokens = [argmax(i) for i in lasts]
        for step in range(1, new_tokens):
            position = len(prompts[0]) + step - 1
            decode([(token, position, s, True) for s, token in enumerate(tokens)])
            tokens = [argmax(i) for i in range(len(tokens))]

    report("llama.cpp", llama_cpp.__version__, sys.argv[2], measure(generate, largest_repeats=1))


if __name__ == "__main__":
    main()
