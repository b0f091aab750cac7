"""One folder an operation, each with a plain torch reference beside its fast versions."""
