"""The training loop on real utterances of data_small/numbers: overfitting, stopping and resuming, bad numbers."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from handful import SETTINGS, SIZE, StopAfter, new_model, weights

from mini_pkd import UserError, train, training_state, wer
from mini_pkd.decode import greedy
from mini_pkd.fast_beam import beam_search
from mini_pkd.feature_store import FeatureStore
from mini_pkd.model_file import load_model, save_model
from mini_pkd.optimizer import Adam
from mini_pkd.seeds import generator
from mini_pkd.stop_signal import Interrupted
from mini_pkd.training_state import MAX_BAD_STEPS, MAX_ROLL_BACKS, Diverged
from mini_pkd.transducer import Transducer


@pytest.mark.slow
def test_a_handful_of_utterances_is_learned_to_wer_0_from_file_to_text(handful, tmp_path):
    part, bpe, normaliser = handful
    plain = {"dropout": 0.0, "time_masks": 0, "freq_masks": 0, "max_warp_fraction": 0.0}
    settings = dataclasses.replace(SETTINGS, epochs=300, dev_every=100, **plain)
    model = new_model(bpe)
    result = train.train(model, part, part, bpe, settings, tmp_path, 0, "T1", progress=False)
    assert result["best_dev_wer"] == 0.0 and result["skipped_updates"] == 0

    path = tmp_path / "model.npz"
    save_model(path, model, normaliser, bpe, training=result)
    loaded, normaliser, bpe, about = load_model(path)
    assert np.array_equal(weights(loaded), weights(model)) and about["training"] == result
    store = FeatureStore(part.store.folder, normaliser)
    enc, lengths = loaded.encode(np.concatenate(list(store)), store.lengths)
    for decoded in (greedy(loaded, enc, lengths), [found[0].labels for found in beam_search(loaded, enc, lengths)]):
        texts = [bpe.decode(labels) for labels in decoded]
        score = wer.score(dict(zip(store.ids, store.texts, strict=True)), dict(zip(store.ids, texts, strict=True)))
        assert score.wer == 0.0 and score.ser == 0.0


@pytest.mark.parametrize("with_teacher, divided", [(False, False), (True, False), (False, True)])
def test_stopped_after_every_step_it_ends_in_the_same_bits(handful, tmp_path, with_teacher, divided):
    """divided: and between the micro-batches of a step, which then is begun again; with dev scored after each step."""
    part, bpe, _ = handful
    teacher = new_model(bpe, seed=9) if with_teacher else None
    settings = dataclasses.replace(SETTINGS, microbatch_frames=int(part.store.lengths.max()) if divided else 0)
    settings = dataclasses.replace(settings, dev_updates=int(divided))

    def run(folder, stop=None):
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, settings, folder, 3, "S1", teacher, stop, progress=False)
        log = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]  # less the seconds
        return weights(model), result | {"seconds": 0}, log

    undisturbed = run(tmp_path / "a")
    stops = 0
    while True:
        try:
            # A fresh model each time: everything must come from the checkpoint.
            resumed = run(tmp_path / "b", StopAfter(stops % (9 if divided else 2)))
            break
        except Interrupted:
            stops += 1
            assert stops < 100  # it gets on
    assert stops >= 4
    assert np.array_equal(resumed[0], undisturbed[0])
    assert resumed[1:] == undisturbed[1:]
    assert (
        len(undisturbed[2]) == 1 + SETTINGS.epochs * (2 if divided else 1)
        and (undisturbed[2][1].split(",")[5] != "0.0") == with_teacher
    )


# --- micro-batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("with_teacher", [False, True])
def test_parts_of_a_batch_add_up_to_its_gradient(handful, with_teacher):
    """In float64, to rounding: ragged lengths, unequal parts, one of a single utterance, one without labels.

    The tolerance is that of float64 sums over some thousand nodes; a part of the wrong weight is off by more than 0.1.
    """
    part, bpe, _ = handful
    targets = [labels if i != 2 else labels[:0] for i, labels in enumerate(part.targets)]
    part = dataclasses.replace(part, targets=targets)
    settings = dataclasses.replace(SETTINGS, dropout=0.0, alpha=0.3)
    teacher = new_model(bpe, seed=9).astype(np.float64) if with_teacher else None
    draw = functools.partial(generator, 0, "S1")

    def gradient(max_frames):
        model = new_model(bpe).astype(np.float64)
        adam = Adam(model)
        batches = part.micro_batches(range(6), max_frames)
        for batch in batches:
            batch.features = batch.features.astype(np.float64)
        means = np.zeros(3)
        for number, batch in enumerate(batches):
            means += train.add_gradient(
                model, teacher, batch, part.store.normaliser, len(batch.ids) / 6, settings, draw, 0, 1, number
            )
        return adam.gradients, means, [len(batch.ids) for batch in batches]

    lengths = np.sort(part.store.lengths)
    whole, means, sizes = gradient(0)
    assert sizes == [6] and means[2] > 0 if with_teacher else means[2] == 0
    seen = set()
    for max_frames in (1, int(lengths[-1]), int(lengths[-3:].sum())):
        parts, their_means, sizes = gradient(max_frames)
        seen |= set(sizes)
        assert sum(sizes) == 6 and len(sizes) > 1
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-12 * np.abs(whole).max())
        np.testing.assert_allclose(their_means, means, rtol=1e-12)
    assert 1 in seen and len(seen) > 1


def test_a_part_drops_by_its_number_and_the_first_like_an_undivided_batch(handful, monkeypatch):
    part, bpe, _ = handful
    drawn, real = [], train.DropoutKeys
    monkeypatch.setattr(train, "DropoutKeys", lambda rate, rng: drawn.append(rng.integers(2**32)) or real(rate, rng))
    model = new_model(bpe)
    adam, draw = Adam(model), functools.partial(generator, 0, "S1")
    for max_frames, step in ((0, 1), (1, 1), (1, 2)):
        batches = part.micro_batches([0, 1, 2], max_frames)
        assert train.train_step(model, None, batches, part.store.normaliser, adam, 0.0, SETTINGS, draw, 0, step)
    assert len(drawn) == 1 + 3 + 3 and drawn[0] == drawn[1] and len(set(drawn)) == 6


def test_a_part_that_is_not_finite_leaves_nothing_of_the_others(handful):
    part, bpe, _ = handful
    model = new_model(bpe)
    adam, draw, before = Adam(model), functools.partial(generator, 0, "S1"), weights(model)
    batches = part.micro_batches([0, 1, 2], 1)
    batches[1].features[:] = np.nan
    assert train.train_step(model, None, batches, part.store.normaliser, adam, 0.1, SETTINGS, draw, 0, 1) is None
    assert not adam.gradients.any() and np.array_equal(weights(model), before) and adam.steps == 0


def test_a_stop_is_seen_between_two_parts(handful):
    part, bpe, _ = handful
    model, looks = new_model(bpe), StopAfter(1)
    adam, draw, before = Adam(model), functools.partial(generator, 0, "S1"), weights(model)
    batches = part.micro_batches(range(4), 1)
    with pytest.raises(Interrupted):
        train.train_step(model, None, batches, part.store.normaliser, adam, 0.1, SETTINGS, draw, 0, 1, looks)
    assert looks.looks == -1 and np.array_equal(weights(model), before)  # after the second part, of four


def test_seed_and_name_decide_and_nothing_else(handful, tmp_path):
    part, bpe, _ = handful
    settings = dataclasses.replace(SETTINGS, epochs=1)
    ends = []
    for i, (seed, name) in enumerate([(0, "S1"), (0, "S1"), (1, "S1"), (0, "B1")]):
        model = new_model(bpe)
        train.train(model, part, part, bpe, settings, tmp_path / str(i), seed, name, progress=False)
        ends.append(weights(model))
    assert np.array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2]) and not np.array_equal(ends[0], ends[3])


def test_a_step_that_is_not_finite_changes_nothing_and_five_in_a_row_stop_the_run(handful, tmp_path, monkeypatch):
    part, bpe, _ = handful
    settings = dataclasses.replace(SETTINGS, epochs=4)
    real, calls, before_after = train.lattice_loss, [], []
    model = new_model(bpe)

    def sometimes_nan(student, *rest):
        calls.append(weights(student))
        loss, rnnt, kl = real(student, *rest)
        if len(calls) in (2, 3):
            loss.data = np.float32(np.nan)
        return loss, rnnt, kl

    monkeypatch.setattr(train, "lattice_loss", sometimes_nan)
    result = train.train(model, part, part, bpe, settings, tmp_path / "a", 0, "T1", progress=False)
    assert result["skipped_updates"] == 2 and result["updates"] == len(calls) - 2
    assert np.array_equal(calls[1], calls[2]) and np.array_equal(calls[2], calls[3])
    assert not np.array_equal(calls[3], calls[4])

    def always_nan(student, *rest):
        before_after.append(weights(student))
        loss, rnnt, kl = real(student, *rest)
        loss.data = np.float32(np.inf)
        return loss, rnnt, kl

    monkeypatch.setattr(train, "lattice_loss", always_nan)
    monkeypatch.setattr(training_state, "MAX_ROLL_BACKS", 0)
    with pytest.raises(Diverged, match="T1 has diverged: at step 5 .* not finite, 5 times in a row"):
        train.train(new_model(bpe), part, part, bpe, settings, tmp_path / "b", 0, "T1", progress=False)
    assert len(before_after) == MAX_BAD_STEPS
    assert all(np.array_equal(w, before_after[0]) for w in before_after)


@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf
@pytest.mark.parametrize("where", ["steps", "dev"])
def test_what_has_given_up_goes_on_from_its_best_weights_with_a_lower_rate(handful, tmp_path, monkeypatch, where):
    """... and ends in the same bits however often it is stopped.  With the old rate it stops at once."""
    part, bpe, _ = handful
    monkeypatch.setattr(training_state, "MAX_ROLL_BACKS", 0)
    settings = dataclasses.replace(SETTINGS, batch_utterances=1)  # epochs of 6 steps
    lower = dataclasses.replace(settings, peak_rate=settings.peak_rate / 2)
    real_loss, real_evaluate, firsts = train.lattice_loss, train.evaluate, []

    def lattice_loss(student, teacher, batch, features, now, dropout):
        firsts.append(weights(student))
        loss, rnnt, kl = real_loss(student, teacher, batch, features, now, dropout)
        if where == "steps" and now == settings and len(firsts) > 7:  # after epoch 1 and a good step
            loss.data = np.float32(np.nan)
        if now == lower and np.array_equal(firsts[-1], best) and not np.array_equal(firsts[-2], best):
            loss.data = np.float32(np.nan)  # the first step with the lower rate: five are counted anew
        return loss, rnnt, kl

    def evaluate(model, *rest):
        if where == "dev" and now == settings and len(firsts) > 6:
            for p in model.named_parameters().values():
                p.data[:] = np.inf  # what a rate of 1e300 does
        return real_evaluate(model, *rest)

    def run(stop=None):
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, now, tmp_path / "run", 3, "S1", None, stop, progress=False)
        return weights(model), result | {"seconds": 0}

    monkeypatch.setattr(train, "lattice_loss", lattice_loss)
    monkeypatch.setattr(train, "evaluate", evaluate)
    now = settings
    with pytest.raises(Diverged, match="lower peak_rate"):
        run()
    after, best = len(firsts), firsts[6]  # the weights after epoch 1
    with pytest.raises(Diverged, match="lower peak_rate"):
        run()
    assert len(firsts) == after  # no step was made
    saved = (tmp_path / "run" / "training.npz").read_bytes()

    now = lower
    undisturbed = run()
    assert undisturbed[1]["peak_rates"] == [[1, settings.peak_rate], [13, lower.peak_rate]]
    assert np.array_equal(firsts[after], best)
    rates = [float(line.split(",")[8]) for line in (tmp_path / "run" / "log.csv").read_text().splitlines()[1:]]
    assert rates[0] == settings.peak_rate and set(rates[1:]) == {lower.peak_rate} and len(rates) == 3

    (tmp_path / "run" / "training.npz").write_bytes(saved)
    stops = 0
    while True:
        try:
            resumed = run(StopAfter(stops % 2))
            break
        except Interrupted:
            stops += 1
    assert stops >= 2 and np.array_equal(resumed[0], undisturbed[0]) and resumed[1] == undisturbed[1]


@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf
@pytest.mark.parametrize("where", ["steps", "dev"])
def test_what_diverges_goes_back_to_its_best_weights_and_on_with_half_the_rate(
    handful, tmp_path, monkeypatch, capfd, where
):
    """By itself, said and logged, and to the same bits however often it is stopped; the second time with a quarter."""
    part, bpe, _ = handful
    settings = dataclasses.replace(SETTINGS, batch_utterances=1, epochs=6)  # epochs of 6 steps
    real_loss, real_evaluate, real_diverge = train.lattice_loss, train.evaluate, training_state.TrainingState.diverge
    too_high, states, rolled_back = settings.peak_rate / 3, [], []

    def spoiled(state):
        return state.step >= 8 and state.rate > too_high

    def lattice_loss(student, *rest):
        loss, rnnt, kl = real_loss(student, *rest)
        if where == "steps" and spoiled(states[-1]):
            loss.data = np.float32(np.nan)
        return loss, rnnt, kl

    def evaluate(model, *rest):
        if where == "dev" and spoiled(states[-1]):
            states[-1].adam.values[:] = np.inf
        return real_evaluate(model, *rest)

    def diverge(state):
        real_diverge(state)
        assert np.array_equal(state.adam.values, state.best_values) and not state.adam.m.any()
        rolled_back.append(state.step)

    class Watched(training_state.TrainingState):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            states.append(self)

    def run(folder, stop=None):
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, settings, tmp_path / folder, 3, "S1", None, stop, progress=False)
        return weights(model), result | {"seconds": 0}

    for name, value in (("lattice_loss", lattice_loss), ("evaluate", evaluate), ("TrainingState", Watched)):
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(training_state.TrainingState, "diverge", diverge)
    undisturbed = run("a")
    peak, (first, second) = settings.peak_rate, rolled_back
    assert (first, second) == ((13, 18) if where == "steps" else (12, 12))
    rates = [[1, peak], [first + 1, peak / 2], [second + 1, peak / 4]]
    assert undisturbed[1]["peak_rates"] == rates and np.isfinite(undisturbed[0]).all()
    err = capfd.readouterr().err
    assert err.count("mini_pkd: S1 has diverged: at step ") == 2 and err.count("\n") == 2
    assert f"goes on from its best weights so far with half the rate, peak_rate={peak / 4:g}\n" in err
    logged = [float(line.split(",")[8]) for line in (tmp_path / "a" / "log.csv").read_text().splitlines()[1:]]
    assert logged[0] == peak and logged[-1] == peak / 4 and len(logged) == 6
    stops = 0
    while True:
        try:
            resumed = run("b", StopAfter(stops % 4))
            break
        except Interrupted:
            stops += 1
            assert stops < 200
    assert stops > 10 and np.array_equal(resumed[0], undisturbed[0]) and resumed[1] == undisturbed[1]


def test_it_gives_up_after_some_rates_and_says_so_again(handful, tmp_path, monkeypatch):
    part, bpe, _ = handful
    real, steps = train.lattice_loss, []

    def always_nan(student, *rest):
        steps.append(0)
        loss, rnnt, kl = real(student, *rest)
        loss.data = np.float32(np.nan)
        return loss, rnnt, kl

    monkeypatch.setattr(train, "lattice_loss", always_nan)
    monkeypatch.setattr(train, "evaluate", lambda *rest: (10.0, 1.0))
    settings = dataclasses.replace(SETTINGS, epochs=100)
    for _ in range(2):
        with pytest.raises(Diverged, match="S1 has diverged: at step 25 .*; lower peak_rate") as error:
            train.train(new_model(bpe), part, part, bpe, settings, tmp_path, 0, "S1", progress=False)
        assert error.value.rate == settings.peak_rate / 2**MAX_ROLL_BACKS and len(steps) == 25


def test_a_stop_is_seen_between_batches_of_the_dev_set(handful):
    part, bpe, _ = handful
    settings = dataclasses.replace(SETTINGS, microbatch_frames=int(part.store.lengths.max()))
    looks = StopAfter(2)
    with pytest.raises(Interrupted):
        train.evaluate(new_model(bpe), part, bpe, settings, looks)
    assert looks.looks == -1


def test_a_rate_may_fall_in_the_middle(handful, tmp_path):
    """From the next step on, and from the weights as they are; stopped or not, the bits are the same."""
    part, bpe, _ = handful
    lower = dataclasses.replace(SETTINGS, peak_rate=SETTINGS.peak_rate / 2)
    ends = []
    for folder, stops in (("a", []), ("b", [StopAfter(0), StopAfter(1)])):
        for settings, stop in ((SETTINGS, StopAfter(3)), *((lower, stop) for stop in stops)):
            with pytest.raises(Interrupted):
                train.train(new_model(bpe), part, part, bpe, settings, tmp_path / folder, 0, "T1", None, stop, False)
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, lower, tmp_path / folder, 0, "T1", progress=False)
        assert result["peak_rates"] == [[1, SETTINGS.peak_rate], [4, lower.peak_rate]]
        ends.append(weights(model))
    assert np.array_equal(*ends)


def test_the_weights_of_the_best_dev_wer_are_kept(handful, tmp_path, monkeypatch):
    part, bpe, _ = handful
    seen = []

    def fake_evaluate(model, *rest):
        seen.append(weights(model))
        return [5.0, 4.0, 3.0][len(seen) - 1], [0.5, 0.2, 0.4][len(seen) - 1]

    monkeypatch.setattr(train, "evaluate", fake_evaluate)
    model = new_model(bpe)
    result = train.train(model, part, part, bpe, SETTINGS, tmp_path, 0, "T1", progress=False)
    assert result["best_dev_wer"] == 0.2 and result["best_dev_loss"] == 4.0
    assert np.array_equal(weights(model), seen[1])


def test_teacher_and_student_must_share_a_vocabulary(handful, tmp_path):
    part, bpe, _ = handful
    teacher = Transducer(SIZE.config(bpe.size + 1), generator(0, "weights"))
    with pytest.raises(UserError, match="one vocabulary"):
        train.train(new_model(bpe), part, part, bpe, SETTINGS, tmp_path, 0, "S1", teacher, progress=False)


def test_dev_evaluation_does_not_depend_on_batches(handful):
    part, bpe, _ = handful
    model = new_model(bpe)
    one = dataclasses.replace(SETTINGS, batch_frames=int(part.store.lengths.max()))
    many = dataclasses.replace(SETTINGS, batch_frames=100000)
    (loss_a, wer_a), (loss_b, wer_b) = (train.evaluate(model, part, bpe, s) for s in (one, many))
    # float32: products of other shapes round differently, the loss of an untrained model is about 100
    assert math.isclose(loss_a, loss_b, rel_tol=1e-5) and wer_a == wer_b


def test_the_memory_for_logits_is_that_of_the_settings(handful, monkeypatch):
    """keep_mb changes no number, so only the call can show it."""
    part, bpe, _ = handful
    batch, asked = part.batch([0, 1]), []
    for name in ("rnnt_loss", "distillation_loss"):
        real = getattr(train, name)
        monkeypatch.setattr(train, name, lambda *a, real=real, **o: asked.append(o["keep_bytes"]) or real(*a, **o))
    settings = dataclasses.replace(SETTINGS, keep_mb=3)
    for teacher in (None, new_model(bpe)):
        train.lattice_loss(new_model(bpe), teacher, batch, batch.features, settings)
    assert asked == [3 * 2**20] * 2
