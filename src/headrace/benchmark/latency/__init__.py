"""The engine alone: timed generations of whole batches."""
