"""Low-rank updates of linears (LoRA, arXiv:2106.09685), another adapter for each token."""
