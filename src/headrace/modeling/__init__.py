"""The computation on the device: families, layers, KV cache, sampling, loading. No requests."""
