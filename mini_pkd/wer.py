"""Word and sentence error rates, and how far to trust them.

The word error rate compares what was said, the reference, with what was recognised, the hypothesis: the fewest edits
of single words that turn one into the other, counted over the whole corpus,

    WER = (substitutions + deletions + insertions) / reference words        summed, then divided

It may exceed 1.  SER, the sentence error rate, is the fraction of utterances with any error at all.  Both are fractions
here, never percent.  Where a reference is empty, each word of its hypothesis is an insertion; a corpus without
reference words has WER 0 if nothing was inserted, else infinity.

A test set is a sample: other utterances would have given another rate.  How different a one?  Bisani & Ney ("Bootstrap
estimates for confidence intervals in ASR performance evaluation", ICASSP 2004) draw a new test set of the same size
from the utterances we have, with replacement, thousands of times, and look at how the rate moves:

- `bootstrap_interval`: the range that holds 95 % of the resampled rates;
- `paired_test`: two systems on the same utterances, resampled *together*, so that what is hard for both cancels.
  It can tell two systems apart whose own two intervals overlap.

Whole utterances are drawn because errors within one are not independent.  (Nor are utterances of one speaker; with
few speakers the true uncertainty is larger.)  Left out: text normalisation, compound words.

A training is a sample too: another seed would have given another model.  Where a system was trained with S seeds, both
functions take the list of its S Scores, and each resample draws S of the seeds as well as B of the utterances, both
with replacement (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics, 2007).  All drawn seeds meet the same
drawn utterances, because there is one test set: three seeds do not make it three times as large.  (S = 3 is few: where
seeds scatter by much more than the interval of one of them is wide, pooled intervals are still too narrow.)

    python -m mini_pkd.wer REFERENCE HYPOTHESIS [OTHER_HYPOTHESIS]      files of lines `ID TEXT`
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .command import Parser, command
from .edit_distance import count_edits
from .resampling import percentiles, resampled_sums
from .score_checks import check_metric, check_pairs, check_texts
from .transcript_file import read_transcript

# --- the edit distance ----------------------------------------------------------------------------


def edit_table(reference, hypothesis):
    """{(i, j): ((errors, substitutions), came from)}: the cheapest way from reference[:i] to hypothesis[:j].

    `min` compares pairs by their errors first, and among equally few errors takes the fewest substitutions, which
    leaves most words right.  edit_distance.count_edits is the fast version: the last entry of this table.
    """
    table = {(0, 0): ((0, 0), None)}
    for i, j in list(np.ndindex(len(reference) + 1, len(hypothesis) + 1))[1:]:
        wrong = 0 if i and j and reference[i - 1] == hypothesis[j - 1] else 1
        ways = []
        for before, error, substitution in (
            ((i - 1, j - 1), wrong, wrong),  # the last two words stand together: right, or a substitution
            ((i - 1, j), 1, 0),  # the last reference word is deleted
            ((i, j - 1), 1, 0),  # the last hypothesis word is inserted
        ):
            if before in table:  # else i or j is 0
                (errors, substitutions), _ = table[before]
                ways.append(((errors + error, substitutions + substitution), before))
        table[i, j] = min(ways)
    return table


def align(reference, hypothesis):
    """The pairs of words on a cheapest way; None stands beside a word that is deleted or inserted.

    >>> align("THE CAT SAT DOWN".split(), "OH THE BAT SAT".split())
    [(None, 'OH'), ('THE', 'THE'), ('CAT', 'BAT'), ('SAT', 'SAT'), ('DOWN', None)]
    """
    table, pairs = edit_table(reference, hypothesis), []
    i, j = len(reference), len(hypothesis)
    while i or j:
        _, (before_i, before_j) = table[i, j]
        pairs.append((reference[before_i] if before_i < i else None, hypothesis[before_j] if before_j < j else None))
        i, j = before_i, before_j
    return pairs[::-1]


# --- scoring a corpus -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Score:
    """A scored corpus of B utterances.  The arrays stay, because intervals and tests resample them."""

    ids: tuple[str, ...]  # sorted, so that resampling does not depend on the order of a file
    words: np.ndarray  # (B,) reference words
    edits: np.ndarray  # (B, 3) substitutions, deletions, insertions

    @property
    def errors(self):
        return self.edits.sum(axis=1)  # (B,)

    @property
    def wrong(self):
        return (self.errors > 0).astype(np.int64)  # (B,) 1 where the sentence has an error

    @property
    def wer(self):
        return float(_rate(self.edits.sum(), self.words.sum()))

    @property
    def ser(self):
        return float(self.wrong.mean())

    def __str__(self):
        substitutions, deletions, insertions = self.edits.sum(axis=0)
        return (
            f"WER {100 * self.wer:.2f} %  ({self.edits.sum()} errors in {self.words.sum()} words: "
            f"{substitutions} S, {deletions} D, {insertions} I)   "
            f"SER {100 * self.ser:.2f} %  ({self.wrong.sum()} of {len(self.ids)} sentences)"
        )


def score(references, hypotheses):
    """Two dictionaries {id: text} -> Score.  Words are what white space separates.

    >>> result = score({"a": "ONE TWO THREE", "b": "FOUR"}, {"a": "ONE TOO THREE", "b": "FOUR"})
    >>> result.wer, result.ser, result.errors.tolist()
    (0.25, 0.5, [1, 0])
    """
    check_texts(references, hypotheses)
    ids = tuple(sorted(references))
    pairs = [(references[i].split(), hypotheses[i].split()) for i in ids]
    words = np.array([len(reference) for reference, _ in pairs], np.int64)
    return Score(ids, words, np.array([count_edits(*pair) for pair in pairs], np.int64))


def _rate(errors, words):
    """errors / words, elementwise; without words 0 if there are no errors, else infinity."""
    errors, words = np.asarray(errors, np.float64), np.asarray(words, np.float64)
    return np.where(words > 0, errors / np.maximum(words, 1), np.where(errors > 0, np.inf, 0.0))


# --- how sure are we? -----------------------------------------------------------------------------


def bootstrap_interval(score, metric="wer", level=0.95, resamples=10_000, seed=0):
    """(low, high) of `metric`, "wer" or "ser", when whole utterances are resampled; a list of Scores: seeds as well.

    One resample is `drawn = rng.integers(0, B, B)`, and its WER is errors[drawn].sum() / words[drawn].sum().  With the
    (S, B) errors and words of S seeds it is `seeds = rng.integers(0, S, S)` as well, and errors[seeds][:, drawn].sum()
    / words[seeds][:, drawn].sum().  Without any error the interval is (0, 0), because no resample has one either.
    """
    check_metric(metric)
    scores = _of_seeds(score)
    check_pairs([(s, s) for s in scores])
    counts = [(s.errors, s.words) if metric == "wer" else (s.wrong, np.ones_like(s.wrong)) for s in scores]
    sums = resampled_sums(np.array(counts), resamples, seed)
    return percentiles(_rate(sums[:, 0], sums[:, 1]), level)


def _of_seeds(score):
    return [score] if isinstance(score, Score) else list(score)


class PairedTest(NamedTuple):
    """WER of a minus WER of b, and the same relative to b: negative when a is better."""

    difference: float
    low: float
    high: float
    p_value: float
    relative: tuple[float, float, float]  # of the WER of b: (value, low, high)


def paired_test(score_a, score_b, level=0.95, resamples=10_000, seed=0):
    """Are the WERs of two systems different?  Both are resampled with the same draws of utterances, and of seeds.

    If a and b were equally good, each would win in about half of the resamples; the two-sided p-value is twice the
    smaller of P(difference <= 0) and P(difference >= 0).  Both count the corpus itself as one more resample, because
    however many there are, they cannot show that p is 0.

    >>> references = {str(i): "ONE TWO" for i in range(40)}
    >>> better = score(references, {i: "ONE TWO" for i in references})
    >>> worse = score(references, {i: "ONE" if int(i) % 4 == 0 else "ONE TWO" for i in references})
    >>> test = paired_test(better, worse)
    >>> test.difference, test.p_value < 0.01, paired_test(better, better).p_value
    (-0.125, True, 1.0)
    """
    pairs = list(zip(_of_seeds(score_a), _of_seeds(score_b), strict=True))
    check_pairs(pairs)
    counts = np.array([(a.errors, b.errors, a.words) for a, b in pairs])  # (S, 3, B)
    sums = resampled_sums(counts, resamples, seed)
    # Both have the same reference words, so counting errors is enough for the sign of the difference.
    at_most = (1 + np.count_nonzero(sums[:, 0] <= sums[:, 1])) / (1 + resamples)
    at_least = (1 + np.count_nonzero(sums[:, 0] >= sums[:, 1])) / (1 + resamples)
    low, high = percentiles(_rate(sums[:, 0] - sums[:, 1], sums[:, 2]), level)
    relative_low, relative_high = percentiles(_rate(sums[:, 0] - sums[:, 1], sums[:, 1]), level)
    a, b, words = counts.sum(axis=(0, 2))
    relative = float(_rate(a - b, b)), relative_low, relative_high
    difference = float(_rate(a, words) - _rate(b, words))
    return PairedTest(difference, low, high, float(min(1.0, 2 * at_most, 2 * at_least)), relative)


# --- the command ----------------------------------------------------------------------------------


def _print_report(names, scores):
    for name, result in zip(names, scores, strict=True):
        print(f"{name}: {result}")
        for metric in ("wer", "ser"):
            low, high = bootstrap_interval(result, metric)
            print(f"    95 % interval of the {metric.upper()}: {100 * low:.2f} to {100 * high:.2f} %")
    if len(scores) == 2:
        test = paired_test(*scores)
        print(
            f"WER of {names[0]} minus WER of {names[1]}: {100 * test.difference:+.2f} points, 95 % interval "
            f"{100 * test.low:+.2f} to {100 * test.high:+.2f}, p = {test.p_value:.4f} (paired bootstrap)"
        )


def demo():
    """Three utterances to count with a finger: 1 S + 1 D, then 1 I, then nothing; 3 errors, 10 words."""
    references = {"u1": "THE CAT SAT DOWN", "u2": "ONE TWO THREE", "u3": "GOOD BYE NOW"}
    first = {"u1": "THE BAT SAT", "u2": "ONE TWO TWO THREE", "u3": "GOOD BYE NOW"}
    second = {"u1": "THE CAT SAT DOWN", "u2": "ONE TWO", "u3": "GOOD BYE NOW"}
    for name in references:
        words = references[name].split(), first[name].split()
        print(f"{name}:", "  ".join(f"{a or '-'}/{b or '-'}" for a, b in align(*words)), "  ", count_edits(*words))
    _print_report(["first", "second"], [score(references, first), score(references, second)])


@command("wer")
def main(arguments=None):
    parser = Parser(
        "wer",
        description="Word error rate of a hypothesis with its 95 % interval; of two hypotheses, also a paired test.  "
        "Files hold lines `ID TEXT`.  Without arguments: a small demo.",
    )
    parser.add_argument("reference", nargs="?")
    parser.add_argument("hypothesis", nargs="*")
    options = parser.parse_args(arguments)
    if options.reference is None:
        return demo()
    if not 1 <= len(options.hypothesis) <= 2:
        parser.error("give a reference and one or two hypotheses")
    references = read_transcript(options.reference)
    _print_report(options.hypothesis, [score(references, read_transcript(path)) for path in options.hypothesis])


if __name__ == "__main__":
    sys.exit(main())
