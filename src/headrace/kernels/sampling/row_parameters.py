"""What the sampling kernels are told of each sampled row: 16 words, integers and floats."""

from __future__ import annotations

COLUMNS = 16
FLAGS, ROW, TOP_K, TOP_N, NUM_BIASED, NUM_BANNED = range(6)
TEMPERATURE, TOP_P, TYPICAL_P, REPETITION, FREQUENCY, PRESENCE, UNIFORM = range(6, 13)

DRAWS, PENALISED, BIASED, BANNED, LOGPROB = 1, 2, 4, 8, 16
"""Bits of ``FLAGS``: draw instead of taking the most likely; look back; …; tell the logprob."""

MOST_ADJUSTMENTS = 1152
"""Tokens of one row that a bias or a ban changes: 1,024 biased, and the ends of sequence."""
