"""LoRA adapters: from a PEFT directory to the updates that a decoder's linears get."""
