"""The training process: base model, adapter, TRL's trainer, checkpoints, callbacks."""
