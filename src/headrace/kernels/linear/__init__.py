"""Matrix multiplication by weights fixed at load, with an optional bias."""
