"""WER against brute force and by hand; intervals and p-values against what statistics promises."""

import functools
import math

import numpy as np
import pytest

from mini_pkd import UserError, wer
from mini_pkd.edit_distance import Edits, count_edits
from mini_pkd.resampling import resampled_sums
from mini_pkd.transcript_file import write_transcript
from mini_pkd.wer import Score, align, bootstrap_interval, edit_table, paired_test, score


def brute_force(reference, hypothesis):
    """Every way to edit, by recursion: the least (errors, substitutions) and its (S, D, I)."""

    @functools.cache
    def best(i, j):
        if i == len(reference):
            inserted = len(hypothesis) - j
            return (inserted, 0), (0, 0, inserted)
        if j == len(hypothesis):
            deleted = len(reference) - i
            return (deleted, 0), (0, deleted, 0)
        ways = []
        same = reference[i] == hypothesis[j]
        for step, ((errors, subs), (s, d, n)) in [
            ("=" if same else "S", best(i + 1, j + 1)),
            ("D", best(i + 1, j)),
            ("I", best(i, j + 1)),
        ]:
            cost = errors + (step != "="), subs + (step == "S")
            ways.append((cost, (s + (step == "S"), d + (step == "D"), n + (step == "I"))))
        return min(ways)

    return best(0, 0)[1]


@pytest.mark.parametrize("seed", range(40))
def test_edits_equal_brute_force(seed):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        words = ["A", "B", "C", "DD", "a"][: rng.integers(1, 6)]
        reference = rng.choice(words, rng.integers(0, 9)).tolist()
        hypothesis = rng.choice(words, rng.integers(0, 9)).tolist()
        edits = count_edits(reference, hypothesis)  # by the kernel
        assert edits == brute_force(reference, hypothesis)
        table = edit_table(reference, hypothesis)  # in plain loops
        assert table[len(reference), len(hypothesis)][0] == (sum(edits), edits.substitutions)
        pairs = align(reference, hypothesis)
        assert [a for a, _ in pairs if a is not None] == reference
        assert [b for _, b in pairs if b is not None] == hypothesis
        substitutions = sum(a != b and a is not None and b is not None for a, b in pairs)
        assert edits == (substitutions, sum(b is None for _, b in pairs), sum(a is None for a, _ in pairs))
        assert edits.deletions - edits.insertions == len(reference) - len(hypothesis)
        # turning it round swaps deletions and insertions
        back = count_edits(hypothesis, reference)
        assert back == (edits.substitutions, edits.insertions, edits.deletions)
        assert all(type(count) is int for count in edits)


@pytest.mark.parametrize(
    "reference, hypothesis, edits",
    [
        ("", "", (0, 0, 0)),
        ("", "A B", (0, 0, 2)),
        ("A B", "", (0, 2, 0)),
        ("A", "B", (1, 0, 0)),
        ("A B C", "A B C", (0, 0, 0)),
        ("A B C", "A X C", (1, 0, 0)),
        ("A B C", "B C", (0, 1, 0)),
        ("A B C", "A B B C", (0, 0, 1)),
        ("A B", "B A", (0, 1, 1)),
        ("THE CAT SAT ON THE MAT", "THE CAT SIT ON MAT NOW", (1, 1, 1)),
    ],
)
def test_hand_cases(reference, hypothesis, edits):
    assert count_edits(reference.split(), hypothesis.split()) == Edits(*edits)
    assert sum(count_edits(reference.split(), hypothesis.split())) == sum(edits)


def test_long_utterances():
    reference = [f"W{i}" for i in range(3000)]
    assert count_edits(reference, reference[:1000] + ["X"] + reference[1001:] + ["Y"] * 5) == (1, 0, 5)
    assert count_edits(reference, []) == (0, 3000, 0)


# --- scores ---------------------------------------------------------------------------------------


def test_pooled_not_averaged():
    # 1 of 1 and 1 of 9: pooled 2 / 10, while the average over utterances would be 5 / 9
    result = score({"a": "X", "b": "1 2 3 4 5 6 7 8 9"}, {"b": "1 2 3 4 0 6 7 8 9", "a": ""})
    assert result.wer == 0.2
    assert result.ser == 1.0
    assert result.edits.sum(axis=0).tolist() == [1, 1, 0]
    assert "2 errors in 10 words: 1 S, 1 D, 0 I" in str(result) and "2 of 2 sentences" in str(result)
    assert result.ids == ("a", "b")
    assert result.words.tolist() == [1, 9]
    assert result.errors.tolist() == [1, 1]
    assert result.wrong.tolist() == [1, 1]
    assert {array.dtype for array in (result.words, result.errors, result.wrong)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("seed", range(10))
def test_score_equals_sums_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    references, hypotheses = {}, {}
    for i in rng.permutation(12):
        references[f"u{i}"] = " ".join(rng.choice(["A", "B", "C"], rng.integers(0, 7)))
        hypotheses[f"u{i}"] = "  ".join(rng.choice(["A", "B", "C"], rng.integers(0, 7)))
    references["one"] = hypotheses["one"] = "A"
    result = score(references, dict(sorted(hypotheses.items())))
    expected = {i: brute_force(references[i].split(), hypotheses[i].split()) for i in references}
    errors = sum(map(sum, expected.values()))
    words = sum(len(text.split()) for text in references.values())
    assert result.wer == errors / words
    assert result.ser == sum(any(edits) for edits in expected.values()) / 13
    assert dict(zip(result.ids, map(tuple, result.edits.tolist()), strict=True)) == expected


def test_empty_references():
    result = score({"a": "", "b": "A B"}, {"a": "X", "b": "A B"})
    assert (result.wer, result.ser, result.edits[:, 2].sum()) == (0.5, 0.5, 1)
    silent = score({"a": ""}, {"a": ""})
    assert (silent.wer, silent.ser) == (0.0, 0.0)
    babble = score({"a": "", "b": ""}, {"a": "X", "b": ""})
    assert (babble.wer, babble.ser) == (math.inf, 0.5)
    assert bootstrap_interval(silent) == (0.0, 0.0)
    assert bootstrap_interval(babble) == (0.0, math.inf)
    assert bootstrap_interval(babble, "ser") == (0.0, 1.0)
    assert paired_test(silent, silent).p_value == 1.0


def test_missing_and_extra_ids_are_named():
    with pytest.raises(UserError, match="no hypothesis for b;"):
        score({"a": "X", "b": "Y"}, {"a": "X"})
    with pytest.raises(UserError, match="no reference for c;"):
        score({"a": "X"}, {"a": "X", "c": "Y"})
    many = {f"u{i}": "X" for i in range(8)}
    with pytest.raises(UserError, match="u0, u1, u2, u3, u4 and 3 more utterances;"):
        score(many, {})
    with pytest.raises(UserError, match="no utterances"):
        score({}, {})


# --- intervals and tests --------------------------------------------------------------------------


def simulated(rng, N, rate, hardness=None):
    """A system whose utterances have different lengths and their own error rates; its true WER is `rate`."""
    words = rng.integers(1, 20, N)
    hardness = rng.gamma(2.0, 0.5, N) if hardness is None else hardness  # mean 1, independent of length
    substitutions = rng.binomial(words, np.minimum(rate * hardness, 1))
    edits = np.stack([substitutions, np.zeros(N, int), np.zeros(N, int)], axis=1)
    return Score(tuple(f"{i:05d}" for i in range(N)), words, edits)


def with_errors(template, rng, rate, hardness):
    substitutions = rng.binomial(template.words, np.minimum(rate * hardness, 1))
    zeros = np.zeros_like(substitutions)
    return Score(template.ids, template.words, np.stack([substitutions, zeros, zeros], axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_interval_equals_the_normal_approximation(seed):
    """For large N the ratio of sums is normal with the delta method's variance.  The bootstrap's two ends
    have a sampling error of about 2 % of the half width at 10,000 draws; skewness adds a little: 8 %."""
    rng = np.random.default_rng(seed)
    result = simulated(rng, 2000, 0.08)
    low, high = bootstrap_interval(result, seed=seed)
    residual = result.errors - result.wer * result.words
    half = 1.959964 * np.sqrt(np.mean(residual**2) / 2000) / result.words.mean()
    assert abs(result.wer - half - low) < 0.08 * half
    assert abs(result.wer + half - high) < 0.08 * half
    low, high = bootstrap_interval(result, "ser", seed=seed)
    half = 1.959964 * np.sqrt(result.ser * (1 - result.ser) / 2000)
    assert abs(result.ser - half - low) < 0.08 * half
    assert abs(result.ser + half - high) < 0.08 * half


def test_interval_covers_the_truth():
    """400 test sets of 150 utterances: about 95 % of the intervals hold the true rate.  Binomial standard
    error 1.1 points; the percentile interval is known to be a point or two short at such a size."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(simulated(rng, 150, 0.1), resamples=600, seed=trial)
        covered += low <= 0.1 <= high
    assert 0.91 <= covered / 400 <= 0.98, covered


def test_paired_test_keeps_its_promise():
    """Two equally good systems: p < 0.05 in about 5 % of 400 trials (standard error 1.1 points)."""
    rng = np.random.default_rng(1)
    rejected = 0
    for trial in range(400):
        hardness = rng.gamma(2.0, 0.5, 150)
        a = simulated(rng, 150, 0.1, hardness)
        b = with_errors(a, rng, 0.1, hardness)
        rejected += paired_test(a, b, resamples=600, seed=trial).p_value < 0.05
    assert 0.02 <= rejected / 400 <= 0.09, rejected


def test_pairing_finds_what_separate_intervals_cannot():
    """Half of the utterances are hard for both systems; b makes all of a's errors and a few more."""
    rng = np.random.default_rng(2)
    a = simulated(rng, 400, 0.2, np.where(np.arange(400) % 2, 1.9, 0.1))
    more = a.edits.copy()
    easy = rng.choice(np.flatnonzero(a.errors < a.words), 12, replace=False)
    more[easy, 0] += 1
    b = Score(a.ids, a.words, more)
    assert bootstrap_interval(a)[1] > bootstrap_interval(b)[0]  # overlap
    test = paired_test(a, b)
    assert test.difference == a.wer - b.wer < 0
    assert test.low <= test.difference <= test.high < 0
    assert test.p_value < 0.01
    swapped = paired_test(b, a)
    assert swapped.difference == -test.difference
    assert swapped.p_value == test.p_value
    # ends are order statistics of the same draws: one step of 10,000 apart at most
    np.testing.assert_allclose([-swapped.high, -swapped.low], [test.low, test.high], rtol=0.02)


def test_identical_systems():
    a = simulated(np.random.default_rng(0), 50, 0.2)
    assert paired_test(a, a) == paired_test([a, a], [a, a]) == (0.0, 0.0, 0.0, 1.0, (0.0, 0.0, 0.0))
    perfect = score({"a": "X", "b": "Y"}, {"a": "X", "b": "Y"})
    assert bootstrap_interval(perfect) == (0.0, 0.0)


def test_exact_bootstrap_of_three_utterances():
    """With N = 3 all 27 equally likely draws can be listed; 200,000 resamples get the same distribution."""
    errors, words = np.array([0, 1, 4]), np.array([2, 3, 5])
    draws = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T  # (27, 3)
    exact = np.sort(errors[draws].sum(1) / words[draws].sum(1))
    zeros = np.zeros(3, int)
    result = Score(("a", "b", "c"), words, np.stack([errors, zeros, zeros], axis=1))
    for level in [0.5, 0.8, 0.9]:
        low, high = bootstrap_interval(result, level=level, resamples=200_000)
        tail = (1 - level) / 2
        position = tail * 27
        assert abs(position - round(position)) > 0.2  # no tie that a random draw could tip over
        assert low == exact[math.ceil(position) - 1]
        assert high == exact[math.ceil((1 - tail) * 27) - 1]


@pytest.mark.parametrize("errors_b", [(1, 1, 3), (0, 2, 1), (1, 1, 5), (0, 1, 4)])
def test_exact_p_value_of_three_utterances(errors_b):
    """The 27 draws again; 200,000 resamples have a standard error of 0.0011 in each tail: 0.01 in 2 p."""
    errors = np.array([0, 1, 4]), np.array(errors_b)
    draws = np.array(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T  # (27, 3)
    difference = (errors[0] - errors[1])[draws].sum(axis=1)
    exact = min(1, 2 * np.mean(difference <= 0), 2 * np.mean(difference >= 0))
    zeros = np.zeros(3, int)
    a, b = (Score(("a", "b", "c"), np.array([2, 3, 5]), np.stack([e, zeros, zeros], axis=1)) for e in errors)
    assert abs(paired_test(a, b, resamples=200_000).p_value - exact) < 0.01


def test_p_is_never_zero():
    a = score({str(i): "X Y" for i in range(30)}, {str(i): "X Y" for i in range(30)})
    b = score({str(i): "X Y" for i in range(30)}, {str(i): "X" for i in range(30)})
    assert paired_test(a, b, resamples=999).p_value == 2 / 1000


def test_seeds_and_order():
    rng = np.random.default_rng(3)
    result = simulated(rng, 300, 0.1)
    assert bootstrap_interval(result, seed=1) == bootstrap_interval(result, seed=1)
    assert bootstrap_interval(result, seed=1) != bootstrap_interval(result, seed=2)
    references = {f"u{i}": "A B C" for i in range(20)}
    hypotheses = {f"u{i}": "A B C D E"[: rng.integers(1, 9)] for i in range(20)}
    forwards = score(references, hypotheses)
    backwards = score(dict(reversed(references.items())), dict(reversed(hypotheses.items())))
    assert forwards.ids == backwards.ids == tuple(sorted(references))
    np.testing.assert_array_equal(forwards.edits, backwards.edits)
    assert bootstrap_interval(forwards) == bootstrap_interval(backwards)


def test_resampling_in_pieces():
    """300 utterances need three pieces of a million: none lost or counted twice at the seams."""
    counts = np.arange(600).reshape(300, 2).T[None]
    sums = resampled_sums(counts, 10_000, seed=5)
    np.testing.assert_array_equal(sums, resampled_sums(counts, 10_000, seed=5))
    np.testing.assert_array_equal(sums[:, 1] - sums[:, 0], 300)  # both counts come from the same draw
    piece = 2**20 // 300
    assert np.mean(sums[:piece, 0] == sums[piece : 2 * piece, 0]) < 0.01  # not copies of one another
    error = sums[:, 0].mean() - counts[0, 0].sum()
    assert abs(error) < 4 * counts[0, 0].std() * np.sqrt(300 / 10_000)


# --- several seeds --------------------------------------------------------------------------------


def several(rng, S, B):
    """Scores of two systems with S seeds; a has fewer errors in some seeds and more in others."""
    words, zeros, ids = rng.integers(1, 6, B), np.zeros(B, int), tuple(f"u{i:03d}" for i in range(B))
    draw = lambda rate: Score(ids, words, np.stack([rng.binomial(words, rate), zeros, zeros], axis=1))  # noqa: E731
    return [draw(rng.uniform(0.1, 0.4)) for _ in range(S)], [draw(rng.uniform(0.1, 0.4)) for _ in range(S)]


@pytest.mark.parametrize("S, B", [(1, 1), (1, 9), (2, 1), (3, 9), (5, 200)])
def test_seeds_and_utterances_are_drawn_as_in_loops(S, B):
    """The definition in loops over the same draws: float64 divisions of equal integers are equal to the bit."""
    a, b = several(np.random.default_rng(S * B), S, B)
    resamples, rng = 300, np.random.default_rng(7)
    all_seeds, differences, relatives, rates = rng.integers(0, S, (resamples, S)), [], [], []
    for seeds, drawn in zip(all_seeds, rng.integers(0, B, (resamples, B)), strict=True):
        errors_a = errors_b = words = 0
        for s in seeds:
            for i in drawn:
                errors_a, errors_b, words = errors_a + a[s].errors[i], errors_b + b[s].errors[i], words + a[s].words[i]
        rates.append(errors_a / words)
        differences.append((errors_a - errors_b) / words)
        relatives.append((errors_a - errors_b) / errors_b if errors_b else math.inf if errors_a else 0.0)
    test = paired_test(a, b, resamples=resamples, seed=7)
    ends = [math.ceil(q * resamples) - 1 for q in (0.025, 0.975)]
    assert [test.low, test.high] == [sorted(differences)[i] for i in ends]
    assert list(test.relative[1:]) == [sorted(relatives)[i] for i in ends]
    assert list(bootstrap_interval(a, resamples=resamples, seed=7)) == [sorted(rates)[i] for i in ends]
    tails = [1 + sum(sign * d <= 0 for d in differences) for sign in (1, -1)]
    assert test.p_value == min(1.0, 2 * min(tails) / (1 + resamples))
    mean_a, mean_b = (sum(score.wer for score in scores) / S for scores in (a, b))
    assert test.difference == pytest.approx(mean_a - mean_b, abs=1e-12)
    assert test.relative[0] == pytest.approx(mean_a / mean_b - 1 if mean_b else math.inf if mean_a else 0, abs=1e-12)


def test_one_seed_draws_what_it_always_drew():
    """Numbers of older reports stay: the draw of one seed takes nothing from the generator."""
    (a,), (b,) = several(np.random.default_rng(0), 1, 30)
    drawn = np.random.default_rng(0).integers(0, 30, (999, 30))
    rates = np.sort(a.errors[drawn].sum(axis=1) / a.words[drawn].sum(axis=1))
    assert bootstrap_interval(a, resamples=999) == bootstrap_interval([a], resamples=999) == (rates[24], rates[974])
    assert paired_test(a, b) == paired_test([a], [b])


def test_exact_pooled_p_value_of_two_seeds_and_two_utterances():
    """All 4 x 4 draws listed; 200,000 resamples have a standard error of 0.0011 in each tail: 0.01 in 2 p."""
    zeros, words, ids = np.zeros(2, int), np.array([9, 9]), ("u", "v")
    a, b = ([Score(ids, words, np.stack([e, zeros, zeros], axis=1)) for e in errors]
            for errors in (([1, 2], [0, 3]), ([2, 2], [4, 1])))  # fmt: skip
    both = [(0, 0), (0, 1), (1, 0), (1, 1)]
    draws = [
        sum(int(a[s].errors[i] - b[s].errors[i]) for s in seeds for i in drawn) for seeds in both for drawn in both
    ]
    exact = min(1, 2 * np.mean([d <= 0 for d in draws]), 2 * np.mean([d >= 0 for d in draws]))
    assert 0.1 < exact < 1 and abs(paired_test(a, b, resamples=200_000).p_value - exact) < 0.01


def test_a_seed_that_disagrees_keeps_a_difference_within_noise():
    """Two of three seeds far better, one far worse: one seed's bootstrap is sure each time, the pooled one is not."""
    rng, words, ids = np.random.default_rng(4), np.full(300, 4), tuple(map(str, range(300)))

    def draw(rate):
        return Score(ids, words, np.stack([rng.binomial(words, rate), 0 * words, 0 * words], axis=1))

    a, b = [draw(0.1), draw(0.1), draw(0.3)], [draw(0.2) for _ in range(3)]
    assert [paired_test(*pair).p_value < 0.01 for pair in zip(a, b, strict=True)] == [True] * 3
    test = paired_test(a, b)
    assert test.low < 0 < test.high and test.p_value > 0.2
    agreed = paired_test(a[:2] * 2, b[:2] * 2)
    assert agreed.high < 0 and agreed.p_value < 0.001


def test_how_often_three_seeds_see_a_difference_that_is_not_there():
    """Equal systems whose seeds scatter by 15 % of their WER: one seed is fooled in about a fifth of 200 trials."""
    rng, words, ids = np.random.default_rng(0), np.full(150, 4), tuple(map(str, range(150)))
    fooled = {1: 0, 3: 0}
    for trial in range(200):
        for S in fooled:
            rates = 0.1 * np.exp(0.15 * rng.standard_normal((2, S)))
            errors = [[np.stack([rng.binomial(words, r), 0 * words, 0 * words], axis=1) for r in row] for row in rates]
            test = paired_test(*([Score(ids, words, e) for e in row] for row in errors), resamples=400, seed=trial)
            fooled[S] += not test.low <= 0 <= test.high
    assert fooled[1] > 20 and fooled[3] < 16, fooled  # 0.05 is 10 of 200, give or take 3


def test_one_test_set_is_not_three():
    """Three equal seeds say as much of the test set as one: the interval is as wide, not by a root of three less."""
    (a,), (b,) = several(np.random.default_rng(6), 1, 400)
    one, three = (np.subtract(t.high, t.low) for t in (paired_test(a, b), paired_test([a] * 3, [b] * 3)))
    assert 0.95 < three / one < 1.05  # ends of 10,000 draws are known to about 2 %


def test_wrong_use_is_one_sentence():
    a, b = score({"a": "X"}, {"a": "X"}), score({"b": "X"}, {"b": "X"})
    c = score({"a": "X Y"}, {"a": "X"})
    for call, sentence in [
        (lambda: paired_test(a, b), "only one side has a, b"),
        (lambda: paired_test(a, c), "differ in a"),
        (lambda: paired_test([a, b], [a, b]), "only one side has a, b"),
        (lambda: bootstrap_interval([a, b]), "only one side has a, b"),
        (lambda: bootstrap_interval(a, "cer"), "no metric 'cer'"),
        (lambda: bootstrap_interval(a, level=95), "between 0 and 1"),
        (lambda: paired_test(a, a, resamples=0), "resamples is 0"),
    ]:
        with pytest.raises(UserError, match=sentence):
            call()


# --- the command ----------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    for name, texts in {
        "reference": {"a": "ONE TWO THREE", "b": "FOUR"},
        "good": {"a": "ONE TWO THREE", "b": "FOUR"},
        "bad": {"a": "ONE TOO THREE", "b": "FOUR"},
        "short": {"a": "ONE"},
    }.items():
        write_transcript(tmp_path / name, texts)
    reference, good, bad, short = (str(tmp_path / name) for name in ["reference", "good", "bad", "short"])
    assert wer.main([reference, bad]) == 0
    out = capsys.readouterr().out
    for part in ["WER 25.00 %", "1 errors in 4 words: 1 S, 0 D, 0 I", "SER 50.00 %", "0.00 to 33.33 %"]:
        assert part in out
    assert "p =" not in out
    assert wer.main([reference, bad, good]) == 0
    out = capsys.readouterr().out
    assert "+25.00 points" in out and "p = " in out
    assert wer.main([reference, short]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("wer: ") and "no hypothesis for b" in captured.err
    for arguments in [[reference], [reference, good, bad, short]]:
        assert wer.main(arguments) == 2
        assert capsys.readouterr().err.startswith("wer: give a reference and one or two hypotheses")


def test_demo(capsys):
    wer.demo()
    shown = capsys.readouterr().out
    assert "CAT/BAT" in shown and "WER 30.00 %" in shown and "p = " in shown
    assert wer.main([]) == 0 and capsys.readouterr().out == shown
