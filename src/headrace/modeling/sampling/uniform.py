"""One random number a row and position, from a counter: no state, so nothing to preserve."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_UINT64 = npt.NDArray[np.uint64]


def uniforms(seeds: _UINT64, positions: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Numbers in [0, 1), each depending on its seed and position only.

    SplitMix64's finaliser (Steele et al., 2014) on the scrambled seed plus the position's step;
    the upper 24 bits are kept, which float32 holds exactly. So a token of a request is the same in
    any batch and after a preemption.

    Args:
        seeds: [R] uint64, one a request.
        positions: [R] position in the sequence of the token to draw.
    """
    mixed = _splitmix64(_splitmix64(seeds) + positions.astype(np.uint64) * _GOLDEN_GAMMA)
    return ((mixed >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


def _splitmix64(state: _UINT64) -> _UINT64:
    mixed = state + _GOLDEN_GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
