"""LoRA fine-tuning: data checks, placement from memory, the training run, adapters. No server."""
