"""Drawing rows with replacement, thousands of times, in memory that does not grow with the test set (wer.py)."""

import numpy as np

from . import UserError


def resampled_sums(columns, resamples, seed):
    """Draw B of the B rows with replacement and sum them, `resamples` times: (B, k) -> (resamples, k).

    In pieces of about a million drawn rows, so that memory stays flat however large the test set.
    """
    if resamples < 1:
        raise UserError(f"the number of resamples is {resamples}; take 1000 or more")
    B = len(columns)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, columns.shape[1]), np.int64)
    step = max(1, 2**20 // B)
    for begin in range(0, resamples, step):
        drawn = rng.integers(0, B, size=(min(step, resamples - begin), B))
        for j, column in enumerate(columns.T):
            sums[begin : begin + step, j] = column[drawn].sum(axis=1)
    return sums


def percentiles(values, level):
    """(low, high): the middle `level` of the values lies between them."""
    if not 0 < level < 1:
        raise UserError(f"the confidence level is {level}; take one between 0 and 1, such as 0.95")
    tail = (1 - level) / 2
    # "inverted_cdf" picks values that occur; interpolating would turn an infinite rate into nan
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
