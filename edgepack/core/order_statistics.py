"""Medians, percentiles and intervals that assume nothing of a distribution.

Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., 2003, section 7.1.
"""

import math
import statistics
from collections.abc import Sequence

# Number of processes -> k: the k-th smallest and the k-th largest process bound the median with an error of 2.8 %
# a side, summed over the three looks at the data.
LOOKS = {7: 1, 14: 3, 21: 6}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (median, low, high) of values that each come from their own process.

    >>> interval([5, 1, 2, 3, 4, 6, 7])
    (4, 1, 7)
    """
    ordered = sorted(values)
    k = max((k for look, k in LOOKS.items() if look <= len(ordered)), default=1)
    return statistics.median(ordered), ordered[k - 1], ordered[-k]


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample such that at least `share` of all samples are not larger.

    >>> percentile([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 0.9)
    9
    """
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
