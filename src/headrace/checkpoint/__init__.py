"""What a model is before any tensor: files, configuration, tokenizer, templates. No torch."""
