"""Drawing seeds and utterances with replacement, thousands of times, in memory that stays flat (wer.py)."""

import numpy as np

from . import UserError


def resampled_sums(counts, resamples, seed):
    """Draw S of the S seeds and B of the B utterances, and sum, `resamples` times: (S, k, B) -> (resamples, k).

    Both are drawn with replacement, and every drawn seed gets the same drawn utterances.  In pieces of about a million
    drawn utterances, so that memory stays flat however large the test set.
    """
    if resamples < 1:
        raise UserError(f"the number of resamples is {resamples}; take 1000 or more")
    S, k, B = counts.shape
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, S, size=(resamples, S))  # one of one: takes nothing from the generator
    times = (seeds[:, None, :] == np.arange(S)[:, None]).sum(axis=2)  # (resamples, S) how often each seed was drawn
    sums = np.zeros((resamples, k), np.int64)
    step = max(1, 2**20 // B)
    for begin in range(0, resamples, step):
        piece = slice(begin, min(begin + step, resamples))
        drawn = rng.integers(0, B, size=(piece.stop - begin, B))
        for s, j in np.ndindex(S, k):
            sums[piece, j] += times[piece, s] * counts[s, j][drawn].sum(axis=1)
    return sums


def percentiles(values, level):
    """(low, high): the middle `level` of the values lies between them."""
    if not 0 < level < 1:
        raise UserError(f"the confidence level is {level}; take one between 0 and 1, such as 0.95")
    tail = (1 - level) / 2
    # "inverted_cdf" picks values that occur; interpolating would turn an infinite rate into nan
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
