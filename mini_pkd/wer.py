"""Word and sentence error rates, and how far to trust them.

The word error rate compares what was said (the reference) with what was recognised (the hypothesis):
the fewest single-word edits that turn one into the other, counted over the whole corpus,

    WER = (substitutions + deletions + insertions) / reference words        summed, then divided

It is pooled, not averaged over utterances, and may exceed 1.  SER, the sentence error rate, is the
fraction of utterances with any error at all.  Both are fractions here, never percent.

Edge cases, decided once: an empty reference is allowed, each word of its hypothesis is an insertion;
a corpus without a single reference word has WER 0 if nothing was inserted, else infinity.

A test set is a sample: other utterances would have given another rate.  Bisani & Ney ("Bootstrap
estimates for confidence intervals in ASR performance evaluation", ICASSP 2004) draw as many utterances,
with replacement, from those we have, thousands of times, and look at how the rate moves:

- `bootstrap_interval`: the range that holds 95 % of the resampled rates;
- `paired_test`: two systems on the same utterances, resampled *together*, so that what is hard for both
  cancels.  Two systems can be told apart long after their own two intervals have begun to overlap.

Whole utterances are drawn because errors within one are not independent.  (Nor are utterances of one
speaker; with few speakers the true uncertainty is larger.)  Left out: text normalisation, compound words.

    python -m mini_pkd.wer REFERENCE HYPOTHESIS [OTHER_HYPOTHESIS]      files of lines `ID TEXT`
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit

from . import UserError
from .checkpoint import write_text_atomic
from .command import Parser, command

# ---------------------------------------------------------------------------------------------------
# Counting edits


class Edits(NamedTuple):
    """What it takes to turn the reference into the hypothesis."""

    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """The fewest edits; among equally few, those with the fewest substitutions (most words right).

    >>> align("ONE TWO THREE".split(), "ONE FOUR THREE THREE".split())
    Edits(substitutions=1, deletions=0, insertions=1)
    >>> align("A B".split(), "B C".split())  # B is right: not two substitutions
    Edits(substitutions=0, deletions=1, insertions=1)
    """
    number: dict[str, int] = {}
    ids = [number.setdefault(word, len(number)) for word in (*reference, *hypothesis)]
    split = len(reference)
    packed = _edit_distance(np.array(ids[:split], np.int64), np.array(ids[split:], np.int64))
    errors, substitutions = packed >> 32, packed & 0xFFFFFFFF
    # deletions - insertions is fixed by the lengths, deletions + insertions by the errors: no backtrace
    surplus = len(reference) - len(hypothesis)
    deletions = (errors - substitutions + surplus) // 2
    return Edits(int(substitutions), int(deletions), int(deletions - surplus))


@njit(cache=True, nogil=True)
def _edit_distance(reference, hypothesis):
    """errors * 2^32 + substitutions, minimised: integers compare by errors first, then substitutions.

    The textbook table, one row at a time: cost[j] = cheapest way from reference[:i] to hypothesis[:j].
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


# ---------------------------------------------------------------------------------------------------
# Scoring a corpus


@dataclass(frozen=True, eq=False)
class Score:
    """A scored corpus of N utterances; the arrays stay, for intervals and tests need them."""

    ids: tuple[str, ...]  # sorted, so that resampling does not depend on the order of a file
    words: np.ndarray  # (N,) reference words
    edits: np.ndarray  # (N, 3) substitutions, deletions, insertions

    @property
    def errors(self) -> np.ndarray:
        return self.edits.sum(axis=1)  # (N,)

    @property
    def wrong(self) -> np.ndarray:
        return (self.errors > 0).astype(np.int64)  # (N,) 1 where the sentence has an error

    @property
    def sentences(self) -> int:
        return len(self.ids)

    @property
    def total_words(self) -> int:
        return int(self.words.sum())

    @property
    def total_errors(self) -> int:
        return int(self.edits.sum())

    @property
    def substitutions(self) -> int:
        return int(self.edits[:, 0].sum())

    @property
    def deletions(self) -> int:
        return int(self.edits[:, 1].sum())

    @property
    def insertions(self) -> int:
        return int(self.edits[:, 2].sum())

    @property
    def wer(self) -> float:
        return float(_rate(self.edits.sum(), self.words.sum()))

    @property
    def ser(self) -> float:
        return float(self.wrong.mean())

    def __str__(self) -> str:
        return (
            f"WER {100 * self.wer:.2f} %  ({self.total_errors} errors in {self.total_words} words: "
            f"{self.substitutions} S, {self.deletions} D, {self.insertions} I)   "
            f"SER {100 * self.ser:.2f} %  ({self.wrong.sum()} of {self.sentences} sentences)"
        )


def score(references: Mapping[str, str], hypotheses: Mapping[str, str]) -> Score:
    """Align each hypothesis with the reference of the same id.  Words are what white space separates.

    >>> result = score({"a": "ONE TWO THREE", "b": "FOUR"}, {"a": "ONE TOO THREE", "b": "FOUR"})
    >>> result.wer, result.ser, result.errors.tolist()
    (0.25, 0.5, [1, 0])
    """
    missing, extra = references.keys() - hypotheses.keys(), hypotheses.keys() - references.keys()
    if missing:
        raise UserError(f"there is no hypothesis for {_some(missing)}; decode the whole reference set")
    if extra:
        raise UserError(f"there is no reference for {_some(extra)}; score against the file that was decoded")
    if not references:
        raise UserError("there are no utterances to score; check that the test set is not empty")
    ids = tuple(sorted(references))
    pairs = [(references[i].split(), hypotheses[i].split()) for i in ids]
    words = np.array([len(reference) for reference, _ in pairs], np.int64)
    edits = np.array([align(reference, hypothesis) for reference, hypothesis in pairs], np.int64)
    return Score(ids, words, edits)


def _some(ids: set[str]) -> str:
    """Up to five names: 'a, b, c, d, e and 7 more utterances'."""
    names = sorted(ids)
    rest = f" and {len(names) - 5} more utterances" if len(names) > 5 else ""
    return ", ".join(names[:5]) + rest


def _rate(errors, words):
    """errors / words, elementwise; without words 0 if there are no errors, else infinity."""
    errors, words = np.asarray(errors, np.float64), np.asarray(words, np.float64)
    return np.where(words > 0, errors / np.maximum(words, 1), np.where(errors > 0, np.inf, 0.0))


# ---------------------------------------------------------------------------------------------------
# How sure are we?


def _resampled_sums(columns: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Draw N of the N rows with replacement and sum them, `resamples` times: (resamples, k).

    In pieces of about a million drawn rows, so that memory stays flat however large the test set.
    """
    N, k = columns.shape
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, k), np.int64)
    step = max(1, 2**20 // N)
    for begin in range(0, resamples, step):
        end = min(begin + step, resamples)
        drawn = rng.integers(0, N, size=(end - begin, N))
        for j in range(k):
            sums[begin:end, j] = columns[:, j][drawn].sum(axis=1)
    return sums


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    # "inverted_cdf" picks values that occur; interpolating would turn an infinite rate into nan
    low, high = np.quantile(values, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def bootstrap_interval(
    score: Score, metric: str = "wer", level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of `metric` ("wer" or "ser") under resampling of whole utterances.

    When no utterance has an error it is (0, 0): the bootstrap cannot imagine an error it never saw.
    """
    if metric == "wer":
        columns = np.stack([score.errors, score.words], axis=1)
    elif metric == "ser":
        columns = np.stack([score.wrong, np.ones_like(score.wrong)], axis=1)
    else:
        raise UserError(f"there is no metric {metric!r}; take 'wer' or 'ser'")
    _check(level, resamples)
    sums = _resampled_sums(columns, resamples, seed)
    return _percentiles(_rate(sums[:, 0], sums[:, 1]), level)


class PairedTest(NamedTuple):
    """WER of a minus WER of b: negative when a is better."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_test(
    score_a: Score, score_b: Score, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedTest:
    """Are the WERs of two systems different?  Both are resampled with the same draws of utterances.

    Bisani & Ney call the fraction of resamples in which a is better the probability of improvement.
    If a and b were equally good it would be near a half; the two-sided p-value is twice the smaller of
    P(difference <= 0) and P(difference >= 0).  Both count the observed corpus as one more resample, so
    p is never 0, which no finite number of resamples could show.

    >>> references = {str(i): "ONE TWO" for i in range(40)}
    >>> better = score(references, {i: "ONE TWO" for i in references})
    >>> worse = score(references, {i: "ONE" if int(i) % 4 == 0 else "ONE TWO" for i in references})
    >>> test = paired_test(better, worse)
    >>> test.difference, test.p_value < 0.01
    (-0.125, True)
    >>> paired_test(better, better).p_value
    1.0
    """
    if score_a.ids != score_b.ids:
        other = set(score_a.ids) ^ set(score_b.ids)
        raise UserError(f"a paired test needs the same utterances twice; only one side has {_some(other)}")
    if not np.array_equal(score_a.words, score_b.words):
        other = {i for i, a, b in zip(score_a.ids, score_a.words, score_b.words, strict=True) if a != b}
        raise UserError(f"a paired test needs the same references twice; they differ in {_some(other)}")
    _check(level, resamples)
    columns = np.stack([score_a.errors, score_b.errors, score_a.words], axis=1)
    sums = _resampled_sums(columns, resamples, seed)
    # Same words in both, so the sign of the difference needs no division.
    at_most = (1 + np.count_nonzero(sums[:, 0] <= sums[:, 1])) / (1 + resamples)
    at_least = (1 + np.count_nonzero(sums[:, 0] >= sums[:, 1])) / (1 + resamples)
    low, high = _percentiles(_rate(sums[:, 0] - sums[:, 1], sums[:, 2]), level)
    p_value = float(min(1.0, 2 * at_most, 2 * at_least))
    return PairedTest(score_a.wer - score_b.wer, low, high, p_value)


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise UserError(f"the confidence level is {level}; take one between 0 and 1, such as 0.95")
    if resamples < 1:
        raise UserError(f"the number of resamples is {resamples}; take 1000 or more")


# ---------------------------------------------------------------------------------------------------
# Transcripts on disk: LibriSpeech's own format, a line `ID TEXT` per utterance


def read_transcript(path: str | Path) -> dict[str, str]:
    """{id: text} in the file's order.  A line with an id alone is an utterance without words."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror}); give a transcript file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a file with lines `ID TEXT`") from None
    transcript: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.split(maxsplit=1)
        if not parts:
            continue
        if parts[0] in transcript:
            raise UserError(f"{path}, line {number}: the utterance {parts[0]} stands there twice; keep one")
        transcript[parts[0]] = parts[1].rstrip() if len(parts) == 2 else ""
    return transcript


def write_transcript(path: str | Path, transcript: Mapping[str, str]) -> None:
    """Write {id: text}, atomically.  White space inside a text shrinks to single blanks."""
    lines = []
    for name, text in transcript.items():
        if name.split() != [name]:
            raise UserError(f"the utterance id {name!r} is empty or holds white space; rename the utterance")
        lines.append(" ".join([name, *text.split()]) + "\n")
    write_text_atomic(path, "".join(lines))


# ---------------------------------------------------------------------------------------------------
# The command


def _print_report(names: list[str], scores: list[Score]) -> None:
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


def _demo() -> None:
    """Three utterances to count with a finger: 1 S + 1 D, then 1 I, then nothing; 3 errors, 10 words."""
    references = {"u1": "THE CAT SAT DOWN", "u2": "ONE TWO THREE", "u3": "GOOD BYE NOW"}
    first = {"u1": "THE BAT SAT", "u2": "ONE TWO TWO THREE", "u3": "GOOD BYE NOW"}
    second = {"u1": "THE CAT SAT DOWN", "u2": "ONE TWO", "u3": "GOOD BYE NOW"}
    for name in references:
        edits = align(references[name].split(), first[name].split())
        print(f"{name}: {references[name]!r} heard as {first[name]!r}: {edits}")
    _print_report(["first", "second"], [score(references, first), score(references, second)])


@command("wer")
def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(
        "wer",
        description="Word error rate of a hypothesis, with a bootstrap interval; with a second hypothesis "
        "a paired test between the two.  Files hold lines `ID TEXT`.  Without arguments: a small demo.",
    )
    parser.add_argument("reference", nargs="?")
    parser.add_argument("hypothesis", nargs="*")
    options = parser.parse_args(arguments)
    if options.reference is None:
        _demo()
        return
    if not 1 <= len(options.hypothesis) <= 2:
        parser.error("give a reference and one or two hypotheses")
    references = read_transcript(options.reference)
    scores = [score(references, read_transcript(path)) for path in options.hypothesis]
    _print_report(options.hypothesis, scores)


if __name__ == "__main__":
    sys.exit(main())
