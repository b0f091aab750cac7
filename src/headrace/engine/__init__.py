"""The loop that joins scheduler and model; the public ``LLM``; the engine process. No HTTP."""
