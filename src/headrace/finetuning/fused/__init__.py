"""Fused forward and backward of a Llama-family decoder with frozen weights and LoRA adapters."""
