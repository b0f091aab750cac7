"""How much memory a fine-tuning run takes, and on how many devices it is placed."""
