"""How far a tensor of one run is from that of another."""

import math

from torch import Tensor


def relative_error(found: Tensor, expected: Tensor, least_scale: float = 1e-3) -> float:
    """The largest difference, relative to the largest value but at least to `least_scale`.

    It is infinite if NaN and infinities are not in the same places.
    """
    found, expected = found.double(), expected.double()
    finite = expected.isfinite()
    if not found[~finite].nan_to_num().equal(expected[~finite].nan_to_num()):
        return math.inf
    if not (found.isnan().equal(expected.isnan()) and found[finite].isfinite().all()):
        return math.inf
    if not finite.any():
        return 0.0
    difference = (found[finite] - expected[finite]).abs().max()
    return float(difference) / max(float(expected[finite].abs().max()), least_scale)
