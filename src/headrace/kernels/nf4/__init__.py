"""QLoRA's 4-bit normal float: blocks of 64 weights, one absolute maximum each."""
