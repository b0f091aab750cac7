"""What ``headrace doctor`` finds out."""
