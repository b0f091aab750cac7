"""LoRA in training: dropout made from a seed, the down projection and its gradients."""
