"""What ``headrace fit`` computes and shows."""
