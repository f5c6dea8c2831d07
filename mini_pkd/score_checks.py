"""What scoring refuses: texts that do not belong together, named by their utterances, and unknown metrics."""

import numpy as np

from . import UserError


def check_texts(references, hypotheses):
    """Two dictionaries {id: text}: every reference has a hypothesis and the other way round."""
    missing, extra = references.keys() - hypotheses.keys(), hypotheses.keys() - references.keys()
    if missing:
        raise UserError(f"there is no hypothesis for {_some(missing)}; decode the whole reference set")
    if extra:
        raise UserError(f"there is no reference for {_some(extra)}; score against the file that was decoded")
    if not references:
        raise UserError("there are no utterances to score; check that the test set is not empty")


def check_pair(score_a, score_b):
    """Both scores are of the same utterances, with the same references."""
    if score_a.ids != score_b.ids:
        other = set(score_a.ids) ^ set(score_b.ids)
        raise UserError(f"only one side has {_some(other)}; a paired test needs the same utterances twice")
    if not np.array_equal(score_a.words, score_b.words):
        other = {i for i, a, b in zip(score_a.ids, score_a.words, score_b.words, strict=True) if a != b}
        raise UserError(f"the references differ in {_some(other)}; a paired test needs the same references twice")


def check_pairs(pairs):
    """All scores, of two systems and of each seed, are of the same utterances."""
    for a, b in pairs:
        check_pair(a, b)
        check_pair(pairs[0][0], a)


def check_metric(metric):
    if metric not in ("wer", "ser"):
        raise UserError(f"there is no metric {metric!r}; take 'wer' or 'ser'")


def _some(ids):
    """Up to five names: 'a, b, c, d, e and 7 more utterances'."""
    names = sorted(ids)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more utterances" if len(names) > 5 else "")
