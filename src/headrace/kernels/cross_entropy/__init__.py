"""Cross-entropy of rows of logits, which become their own gradient in place."""
