"""What a search refuses: numbers below one, rows that do not belong to the lengths, scores that are not numbers."""

import numpy as np

from . import UserError


def check_inputs(enc, lengths, max_symbols, **numbers):
    """-> lengths (B,) int64"""
    check_numbers(max_symbols=max_symbols, **numbers)
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(enc):
        raise UserError(
            f"the lengths add up to {lengths.sum()} where there are {len(enc)} encoder rows; "
            "give one length per utterance, none negative, that together count all rows."
        )
    return lengths


def check_numbers(**numbers):
    for name, value in numbers.items():
        if isinstance(value, bool) or value != int(value) or value < 1:
            raise UserError(f"{name} is {value}; give a whole number of at least 1.")


def scores_not_finite():
    return UserError(
        "the model's scores are infinite or not numbers (NaN), because its file is damaged or its training diverged; "
        "train it again or take an earlier one."
    )
