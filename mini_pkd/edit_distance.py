"""The edit distance of wer.py, fast: its table one row at a time, on integers."""

from typing import NamedTuple

import numpy as np
from numba import njit


class Edits(NamedTuple):
    """What it takes to turn the reference into the hypothesis."""

    substitutions: int
    deletions: int
    insertions: int


def count_edits(reference, hypothesis):
    """The Edits of a cheapest way between two lists of words.

    >>> count_edits("ONE TWO THREE".split(), "ONE FOUR THREE THREE".split())
    Edits(substitutions=1, deletions=0, insertions=1)
    >>> count_edits("A B".split(), "B C".split())  # B is right: not two substitutions
    Edits(substitutions=0, deletions=1, insertions=1)
    """
    number = {}
    ids = [number.setdefault(word, len(number)) for word in (*reference, *hypothesis)]
    split = len(reference)
    packed = int(edit_distance(np.array(ids[:split], np.int64), np.array(ids[split:], np.int64)))
    errors, substitutions = packed >> 32, packed & 0xFFFFFFFF
    # deletions - insertions is fixed by the lengths, deletions + insertions by the errors: no way back through a table
    surplus = len(reference) - len(hypothesis)
    deletions = (errors - substitutions + surplus) // 2
    return Edits(substitutions, deletions, deletions - surplus)


@njit(cache=True, nogil=True)
def edit_distance(reference, hypothesis):
    """errors * 2^32 + substitutions, minimised: integers compare by errors first, then by substitutions.

    Its readable partner is wer.edit_table, of which only row i stays here: cost[j] = cheapest way from
    reference[:i] to hypothesis[:j].
    """
    one = np.int64(1) << 32
    columns = hypothesis.size + 1
    cost = np.empty(columns, np.int64)
    for j in range(columns):
        cost[j] = j * one  # from nothing: j insertions
    for i in range(1, reference.size + 1):
        diagonal = cost[0]  # cost[i - 1, j - 1], which writing cost[j - 1] is about to destroy
        cost[0] = i * one  # to nothing: i deletions
        for j in range(1, columns):
            best = diagonal
            if reference[i - 1] != hypothesis[j - 1]:
                best += one + 1  # an error, and a substitution
            best = min(best, cost[j] + one)  # deletion: cost[j] still is row i - 1
            best = min(best, cost[j - 1] + one)  # insertion
            diagonal = cost[j]
            cost[j] = best
    return cost[columns - 1]
