"""decode.py against enumeration of all paths and plain loops, and itself cut into pieces."""

import itertools
import math

import numpy as np
import pytest

from mini_pkd import UserError, decode
from mini_pkd.decode import GreedyStream, TableModel, beam_search_readable, greedy


class ToyModel:
    """A random transducer whose predictor is a small tanh RNN: it remembers the whole history, from symbol 0.

    float64 throughout, so that scores computed in different batches agree to about 1e-13.
    """

    def __init__(self, seed, V, J=5, H=4, sharp=1.0, blank=0.0):
        rng = np.random.default_rng(seed)
        self.embed = rng.standard_normal((V, H)) * 1.5
        self.recur = rng.standard_normal((H, H))
        self.pred = rng.standard_normal((H, J))
        self.out = rng.standard_normal((J, V)) * sharp
        self.bias = np.zeros(V)
        self.bias[0] = blank
        self.H, self.V, self.J = H, V, J
        self.steps = 0  # rows that went through the predictor

    def predictor_start(self, K):
        return self.predictor_step(np.zeros(K, dtype=np.int64), (np.zeros((K, self.H)), np.zeros((K, 2, 1))))

    def predictor_step(self, symbols, state):
        assert symbols.dtype == np.int64 and symbols.shape == (len(state[0]),)
        self.steps += len(symbols)
        h = np.tanh(self.embed[symbols] + state[0] @ self.recur)
        return h @ self.pred, (h, state[1] + 1)  # the second array counts symbols, in an odd shape

    def joint_logits(self, enc_rows, pred_rows):
        assert enc_rows.shape == pred_rows.shape
        return np.tanh(enc_rows + pred_rows) @ self.out + self.bias

    def frames(self, seed, T):
        return np.random.default_rng(seed).standard_normal((T, self.J)) * 1.5


def step_log_probs(model, enc_row, labels):
    """log P(. | frame, labels), the predictor run from the start symbol 0 over all labels: no cache."""
    pred, state = model.predictor_start(1)
    for symbol in labels:
        pred, state = model.predictor_step(np.array([symbol], dtype=np.int64), state)
    logits = model.joint_logits(enc_row[None], pred)[0]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


def exhaustive(model, enc, max_symbols):
    """{labels: probability}, a sum over every single path, in plain probabilities."""
    words = [w for n in range(max_symbols + 1) for w in itertools.product(range(1, model.V), repeat=n)]
    table = {}  # log-probabilities of (frame, labels), computed once
    total = {}
    for path in itertools.product(words, repeat=len(enc)):  # what is said in each frame
        labels, log_prob = (), 0.0
        for t, word in enumerate(path):
            for symbol in (*word, 0):
                if (t, labels) not in table:
                    table[t, labels] = step_log_probs(model, enc[t], labels)
                log_prob += table[t, labels][symbol]
                if symbol:
                    labels += (symbol,)
        total[labels] = total.get(labels, 0.0) + math.exp(log_prob)
    return total


def assert_same(found, expected, tolerance=1e-11):
    """Same labels in the same order.  Tolerance: float64 sums of some dozen terms in another order."""
    assert [h.labels for h in found] == [h.labels for h in expected]
    for a, b in zip(found, expected, strict=True):
        assert abs(a.log_prob - b.log_prob) <= tolerance


def assert_exhaustive(found, expected):
    assert len(found) == len(expected)
    assert len({tuple(h.labels) for h in found}) == len(found)  # no text twice
    for h in found:
        assert abs(math.exp(h.log_prob) - expected[tuple(h.labels)]) <= 1e-12
    scores = [h.log_prob for h in found]
    assert scores == sorted(scores, reverse=True)


def random_pieces(rng, T):
    """Ways to cut T rows: whole, one by one, and twice at random, with empty pieces."""
    yield [T]
    yield [1] * T
    for _ in range(2):
        yield np.diff([0, *np.sort(rng.integers(0, T + 1, 5)), T])


SHAPES = [(1, 3, 3), (2, 3, 2), (3, 3, 1), (3, 2, 3), (4, 2, 2), (2, 4, 2), (3, 3, 2), (5, 2, 1)]


@pytest.mark.parametrize("T,V,max_symbols", SHAPES)
def test_wide_beam_is_exhaustive_search(T, V, max_symbols):
    """30 random models a shape, 240 lattices: every label sequence is found, and its whole sum."""
    for seed in range(30):
        model = ToyModel(seed, V, sharp=1 + seed % 3)
        enc = model.frames(1000 + seed, T)
        found = beam_search_readable(model, enc, beam=10_000, max_symbols=max_symbols, n_best=10_000)
        assert_exhaustive(found, exhaustive(model, enc, max_symbols))


def test_exhaustive_probabilities_sum_to_one_when_the_bound_does_not_bind():
    """Checks the oracle: nothing is lost but what more symbols than the bound would take."""
    model = ToyModel(3, 2, sharp=0.2, blank=4.0)
    total = exhaustive(model, model.frames(1, 3), 4)
    assert 1 - 1e-6 < sum(total.values()) <= 1 + 1e-12


def test_a_search_that_forgets_to_merge_or_counts_twice_would_be_seen():
    """The best labels differ from the best path in some of these lattices, so merging is really tested."""
    differ = 0
    for seed in range(30):
        model = ToyModel(seed, 3)
        enc = model.frames(1000 + seed, 3)
        total = exhaustive(model, enc, 2)
        best_path = {}
        for emitted in itertools.product(range(3), repeat=3):  # one symbol at most per frame is enough here
            labels, log_prob = (), 0.0
            for t, symbol in enumerate(emitted):
                for s in (symbol, 0) if symbol else (0,):
                    log_prob += step_log_probs(model, enc[t], labels)[s]
                    labels += (s,) if s else ()
            best_path[labels] = max(best_path.get(labels, -np.inf), log_prob)
        differ += max(total, key=total.get) != max(best_path, key=best_path.get)
    assert differ >= 3


def greedy_by_hand(model, enc, max_symbols):
    labels = []
    for row in enc:
        for _ in range(max_symbols):
            best = int(np.argmax(step_log_probs(model, row, labels)))
            if best == 0:
                break
            labels.append(best)
    return labels


@pytest.mark.parametrize("seed", range(12))
def test_greedy_equals_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    model = ToyModel(seed, int(rng.integers(2, 7)), blank=rng.uniform(-1, 2))
    lengths = rng.integers(0, 9, 6)
    lengths[seed % 6] = 1
    enc = model.frames(seed, lengths.sum())
    max_symbols = 1 + seed % 4
    expected = [greedy_by_hand(model, rows, max_symbols) for rows in np.split(enc, np.cumsum(lengths)[:-1])]
    assert greedy(model, enc, lengths, max_symbols) == expected
    assert any(expected)


@pytest.mark.parametrize("seed", range(8))
def test_a_greedy_stream_does_not_depend_on_the_cutting(seed):
    """It is the readable partner of `greedy`, and equals it whatever the pieces."""
    rng = np.random.default_rng(seed)
    T = int(rng.integers(1, 30))
    model = ToyModel(seed, 6, blank=1.0)
    enc = model.frames(seed, T)
    whole = greedy(model, enc, [T])[0]
    for pieces in random_pieces(rng, T):
        stream = GreedyStream(model)
        t, said = 0, []
        for n in pieces:
            now = stream.push(enc[t : t + n])
            assert now[: len(said)] == said  # greedy search only appends
            said = now
            t += n
        assert stream.finish() == said == whole
    stream = GreedyStream(model)
    for row in range(T):  # what was said up to a row is what greedy search says of these rows alone
        assert greedy(model, enc[: row + 1], [row + 1])[0] == stream.push(enc[row : row + 1])


def test_a_greedy_stream_remembers_the_row_of_each_label():
    spoken = 0
    for seed in range(20):
        model = ToyModel(seed, V=4, blank=1.0)
        enc, stream, known = model.frames(seed, 9), GreedyStream(model), 0
        for t in range(9):
            labels = stream.push(enc[t : t + 1])
            assert stream.rows[known:] == [t] * (len(labels) - known)
            known = len(labels)
        whole = GreedyStream(model)
        assert whole.push(enc) == stream.labels and whole.rows == stream.rows
        spoken += known
    assert spoken > 20


@pytest.mark.parametrize("T,V,max_symbols", SHAPES)
def test_the_trace_tells_how_every_hypothesis_came_about(T, V, max_symbols):
    """With a wide beam: after each row all label sequences, and each way with the whole sum of its paths."""
    for seed in range(3):
        model = ToyModel(seed, V, sharp=1 + seed % 3)
        enc = model.frames(1000 + seed, T)
        trace = []
        beam_search_readable(model, enc, beam=10_000, max_symbols=max_symbols, trace=trace)
        assert len(trace) == T
        before = {(): 1.0}
        for t in range(T):
            after = exhaustive(model, enc[: t + 1], max_symbols)
            assert trace[t].keys() == after.keys()
            for labels, ways in trace[t].items():
                assert abs(math.exp(np.logaddexp.reduce([way for _, way in ways])) - after[labels]) <= 1e-12
                for said, way in ways:
                    probability = before[labels[: len(labels) - said]]
                    for u in range(len(labels) - said, len(labels)):
                        probability *= math.exp(step_log_probs(model, enc[t], labels[:u])[labels[u]])
                    probability *= math.exp(step_log_probs(model, enc[t], labels)[0])
                    assert abs(math.exp(way) - probability) <= 1e-12
            before = after


def test_a_narrow_trace_holds_the_beam_after_each_row():
    model = ToyModel(3, 5, sharp=0.7, blank=2.0)
    enc = model.frames(3, 9)
    trace = []
    found = beam_search_readable(model, enc, beam=3, n_best=3, trace=trace)
    for t, stood in enumerate(trace):
        expected = beam_search_readable(model, enc[: t + 1], beam=3, n_best=3)
        assert [list(labels) for labels in stood] == [h.labels for h in expected]
        for ways, h in zip(stood.values(), expected, strict=True):
            assert len({said for said, _ in ways}) == len(ways)
            assert abs(np.logaddexp.reduce([way for _, way in ways]) - h.log_prob) <= 1e-11
    assert [h.labels for h in found] == [list(labels) for labels in trace[-1]]
    assert any(len(ways) > 1 for stood in trace for ways in stood.values())


def test_two_ways_to_the_same_labels():
    """0.3: nothing in row 1 after a 2 in row 0; 0.27: the 2 in row 1."""
    model = TableModel([[[0.3, 0.4, 0.3], [1, 0, 0], [1, 0, 0]], [[0.0, 0.1, 0.9], [1, 0, 0], [1, 0, 0]]])
    trace = []
    beam_search_readable(model, model.enc, trace=trace)
    np.testing.assert_allclose(np.exp(trace[1][2,]), np.exp([(0, np.log(0.3)), (1, np.log(0.27))]), atol=1e-12)


def test_a_model_that_never_says_blank_ends():
    model = ToyModel(4, 3, blank=-30.0)
    enc = model.frames(4, 7)
    assert [len(x) for x in greedy(model, enc, [3, 4], max_symbols=2)] == [6, 8]
    assert GreedyStream(model, max_symbols=2).push(enc) == greedy(model, enc, [7], max_symbols=2)[0]
    assert np.isfinite(beam_search_readable(model, enc, beam=3, max_symbols=2)[0].log_prob)


def test_no_rows_no_utterances():
    model = ToyModel(0, 3)
    none = np.zeros((0, model.J))
    assert greedy(model, none, []) == []
    assert greedy(model, none, [0, 0]) == [[], []]
    assert GreedyStream(model).finish() == GreedyStream(model).push(none) == []
    trace = []
    assert beam_search_readable(model, none, trace=trace) == [([], 0.0)] and trace == []


def with_a_bad_score(what, where, dtype):
    """-> a model whose scores are bad in the third row of the second utterance only, and its encoder rows."""
    model = ToyModel(0, 4)
    enc = model.frames(0, 6).astype(dtype)
    bad, joint = enc[5], model.joint_logits

    def joint_logits(enc_rows, pred_rows):
        logits = joint(enc_rows, pred_rows).astype(dtype)
        logits[(enc_rows == bad).all(axis=1), where] = what
        return logits

    model.joint_logits = joint_logits
    return model, enc


def assert_refused(decode, what, where):
    """A single -inf is the one exception: it cannot be said."""
    with np.errstate(invalid="ignore"):
        if what == -np.inf and where != slice(None):
            decode()
            return
        with pytest.raises(UserError, match="infinite or not numbers") as error:
            decode()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("where", [0, 1, 3, slice(None)])  # blank, a symbol, the last one, all
@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused_by_every_search(what, where, dtype):
    model, enc = with_a_bad_score(what, where, dtype)
    assert_refused(lambda: greedy(model, enc, [3, 3]), what, where)
    assert_refused(lambda: GreedyStream(model).push(enc[3:]), what, where)
    assert_refused(lambda: beam_search_readable(model, enc[3:], beam=4), what, where)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda m, e: greedy(m, e, [2]), "lengths"),
        (lambda m, e: greedy(m, e, [4, -1]), "lengths"),
        (lambda m, e: GreedyStream(m, max_symbols=-1), "max_symbols"),
        (lambda m, e: greedy(m, e * np.nan, [3]), "NaN"),
        (lambda m, e: GreedyStream(m).push(e * np.nan), "NaN"),
        (lambda m, e: beam_search_readable(m, e, beam=0), "beam"),
        (lambda m, e: beam_search_readable(m, e * np.nan), "NaN"),
    ],
)
def test_bad_input_is_one_sentence(call, word):
    model = ToyModel(0, 3)
    with pytest.raises(UserError, match=word) as error:
        call(model, model.frames(0, 3))
    assert "\n" not in str(error.value)


def test_demo(capsys):
    decode.demo()
    shown = capsys.readouterr().out
    assert "a   (wrong)" in shown and "P(b) = 0.57   merged from 0.30" in shown and "P(a) = 0.43" in shown
