"""FP8 (e4m3) quantization of rows, each with its own scale."""
