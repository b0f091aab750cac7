"""LoRA training: time of a step, tokens a second, memory; stock PEFT in the same loop."""
