"""Who computes how many tokens in the next step, and in which KV blocks. Pure Python."""
