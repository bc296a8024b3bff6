"""How often training saves its state."""

from __future__ import annotations

import math

FAILURE_SECONDS = 3600.0  # between two failures: spot nodes under pressure are worse, most clusters far better
LEAST_SECONDS = 5.0
MOST_COST = 0.03  # share of the time that saving may take, whatever else is wanted


def steps_between(step_seconds: float, save_seconds: float, most_seconds: float) -> int:
    """Steps from one checkpoint to the next, at least 1.

    The interval that loses least, sqrt(2 x cost x time between failures) (Young, "A first order approximation to the
    optimum checkpoint interval", 1974), from LEAST_SECONDS to most_seconds; but never so short that saving takes more
    than MOST_COST. step_seconds, save_seconds: as measured, of one step and of the part of a save for which training
    waits.
    """
    best = math.sqrt(2 * save_seconds * FAILURE_SECONDS)
    seconds = max(min(max(best, LEAST_SECONDS), most_seconds), save_seconds / MOST_COST)
    return max(1, int(seconds / max(step_seconds, 1e-9)))
