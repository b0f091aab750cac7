"""Many requests given at once to the public ``LLM``: throughput without a server."""
