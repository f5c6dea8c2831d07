"""The training loop on real utterances of data_small/numbers: overfitting, stopping and resuming, bad numbers."""

import dataclasses
import json
import math
import random
import types
from pathlib import Path

import numpy as np
import pytest
from test_model_file import mutated

from mini_pkd import UserError, checkpoint, train, wer
from mini_pkd.bpe import BPE, word_counts
from mini_pkd.corpus_folder import read_part
from mini_pkd.decode import greedy
from mini_pkd.fast_beam import beam_search
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.model_file import load_model, save_model
from mini_pkd.optimizer import learning_rate
from mini_pkd.scales import TINY, Size
from mini_pkd.seeds import generator
from mini_pkd.transducer import Transducer

NUMBERS = Path(__file__).resolve().parent.parent / "data_small" / "numbers"
SIZE = Size(blocks=3, width=48, heads=4, window=16, kernel=8, expansion=2, joint_width=48, lstm_layers=1, lstm_width=48)
SETTINGS = dataclasses.replace(
    TINY.settings, batch_utterances=3, peak_rate=4e-3, warmup_steps=20, epochs=3, dev_every=1, checkpoint_minutes=60.0
)


@pytest.fixture(scope="module")
def handful(tmp_path_factory):
    """Six short utterances of different lengths: (Part, BPE, normaliser)."""
    utterances, _ = read_part(NUMBERS / "train")
    store = FeatureStore.build(tmp_path_factory.mktemp("store"), utterances[:40:7])
    store.normaliser = normaliser = estimate_normaliser([store])
    assert len(set(store.lengths.tolist())) > 3
    bpe = BPE.train(word_counts(u.text for u in utterances), 48)
    part, problems = train.Part.encode(store, bpe)
    assert not problems
    return part, bpe, normaliser


def new_model(bpe, seed=0, size=SIZE):
    return Transducer(size.config(bpe.size), generator(seed, "weights"))


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.named_parameters().values()])


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


class StopAfter:
    """A StopSignal whose flag goes up at the n-th look."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def raised(self):
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("with_teacher", [False, True])
def test_stopped_after_every_step_it_ends_in_the_same_bits(handful, tmp_path, with_teacher):
    part, bpe, _ = handful
    teacher = new_model(bpe, seed=9) if with_teacher else None

    def run(folder, stop=None):
        model = new_model(bpe)
        result = train.train(model, part, part, bpe, SETTINGS, folder, 3, "S1", teacher, stop, progress=False)
        log = [line.rsplit(",", 1)[0] for line in (folder / "log.csv").read_text().splitlines()]  # less the seconds
        return weights(model), result | {"seconds": 0}, log

    undisturbed = run(tmp_path / "a")
    stops = 0
    while True:
        try:
            # A fresh model each time: everything must come from the checkpoint.
            resumed = run(tmp_path / "b", StopAfter(stops % 2))
            break
        except train.Interrupted:
            stops += 1
            assert stops < 100  # it gets on
    assert stops >= 4
    assert np.array_equal(resumed[0], undisturbed[0])
    assert resumed[1:] == undisturbed[1:]
    assert len(undisturbed[2]) == 1 + SETTINGS.epochs and (undisturbed[2][1].split(",")[5] != "0.0") == with_teacher


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
    with pytest.raises(train.Diverged, match="T1 has diverged: at step 5 .* not finite, 5 times in a row"):
        train.train(new_model(bpe), part, part, bpe, settings, tmp_path / "b", 0, "T1", progress=False)
    assert len(before_after) == train.MAX_BAD_STEPS
    assert all(np.array_equal(w, before_after[0]) for w in before_after)


@pytest.mark.filterwarnings("ignore:invalid value")  # inf - inf
@pytest.mark.parametrize("where", ["steps", "dev"])
def test_what_has_diverged_goes_on_from_its_best_weights_with_a_lower_rate(handful, tmp_path, monkeypatch, where):
    """... and ends in the same bits however often it is stopped.  With the old rate it stops at once."""
    part, bpe, _ = handful
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
    with pytest.raises(train.Diverged, match="lower peak_rate"):
        run()
    after, best = len(firsts), firsts[6]  # the weights after epoch 1
    with pytest.raises(train.Diverged, match="lower peak_rate"):
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
        except train.Interrupted:
            stops += 1
    assert stops >= 2 and np.array_equal(resumed[0], undisturbed[0]) and resumed[1] == undisturbed[1]


def test_a_rate_may_fall_in_the_middle(handful, tmp_path):
    """From the next step on, and from the weights as they are; stopped or not, the bits are the same."""
    part, bpe, _ = handful
    lower = dataclasses.replace(SETTINGS, peak_rate=SETTINGS.peak_rate / 2)
    ends = []
    for folder, stops in (("a", []), ("b", [StopAfter(0), StopAfter(1)])):
        for settings, stop in ((SETTINGS, StopAfter(2)), *((lower, stop) for stop in stops)):
            with pytest.raises(train.Interrupted):
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


def test_a_checkpoint_of_another_size_is_refused(handful, tmp_path):
    part, bpe, _ = handful
    with pytest.raises(train.Interrupted):
        train.train(
            new_model(bpe), part, part, bpe, SETTINGS, tmp_path, 0, "S1", None, StopAfter(0), progress=False
        )
    other = new_model(bpe, size=dataclasses.replace(SIZE, width=32))
    with pytest.raises(UserError, match="another size"):
        train.train(other, part, part, bpe, SETTINGS, tmp_path, 0, "S1", progress=False)


@pytest.mark.parametrize("seed", range(4))
def test_a_state_changed_by_hand_is_refused_or_can_be_continued(handful, tmp_path, seed):
    """100 mutations each: no exception but UserError, at once or in what the loop does with the state."""
    _, bpe, _ = handful
    size = dataclasses.replace(SIZE, width=8, heads=2, joint_width=8, lstm_width=8)
    run = train._Run(new_model(bpe, size=size), tmp_path, SETTINGS, 0, "S1")
    run.adam.gradients[:] = 1.0
    run.adam.step(0.1)
    run.end_epoch(0, (4.0, 0.5))
    run.end_epoch(1, None)
    arrays, meta = checkpoint.load(run.path)
    rng = random.Random(seed)
    refused = 0
    for _ in range(100):
        broken = mutated(meta, rng)
        checkpoint.save(run.path, arrays, broken)
        run = train._Run(new_model(bpe, size=size), tmp_path, SETTINGS, 0, "S1")
        try:
            run.restore()
        except UserError as error:
            assert "training.npz is no state of a training: delete it to train S1 anew." in str(error)
            refused += 1
            continue
        run.adam.gradients[:] = 1.0
        run.adam.step(learning_rate(run.step + 1, 100, 0.1, 10))
        run.sums[0] += 1.0
        run.end_epoch(run.epoch, (3.0, 0.25))
        assert np.isfinite(run.adam.values).all() and json.dumps(run.finish())
    assert 50 < refused < 100


@pytest.mark.parametrize("name", ["values", "m", "v", "best"])
def test_arrays_of_a_state_that_are_none_of_this_model(handful, tmp_path, name):
    _, bpe, _ = handful
    run = train._Run(new_model(bpe), tmp_path, SETTINGS, 0, "S1")
    run.save()
    arrays, meta = checkpoint.load(run.path)
    spoiled = arrays[name].copy()
    spoiled[3] = np.nan
    broken = [arrays | {name: array} for array in (spoiled[:1], spoiled, arrays[name].astype(np.float64))]
    broken.append({key: array for key, array in arrays.items() if key != name})
    broken.append(arrays | {"v": -np.ones_like(spoiled)})  # a variance
    for spoiled_arrays in broken:
        checkpoint.save(run.path, spoiled_arrays, meta)
        with pytest.raises(UserError, match="another size|no state of a training"):
            run.restore()


def test_an_utterance_whose_labels_no_lattice_can_hold_is_listed(handful):
    part, bpe, _ = handful
    store = types.SimpleNamespace(
        ids=["good", "short", "long"], texts=["ONE", "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT", "TWO"],
        lengths=np.array([80, 4, 900]), folder="here",
    )  # fmt: skip
    kept, problems = train.Part.encode(store, bpe, max_frames=800)
    assert kept.indices.tolist() == [0]
    assert [p.where for p in problems] == ["short", "long"]
    store.lengths = np.array([900, 900, 900])
    with pytest.raises(UserError, match="no utterance"):
        train.Part.encode(store, bpe, max_frames=800)


@pytest.mark.parametrize("reduction", [1, 2, 8])
def test_the_last_row_of_the_encoder_may_be_partly_filled(handful, reduction):
    """Rows are counted as the encoder makes them, the last one included: 5 symbols a row are the limit."""
    _, bpe, _ = handful
    text = "SEVEN EIGHT NINE ZERO ONE"
    enough = -(-len(bpe.encode(text)) // 5)  # rows
    assert enough > 1
    lengths = np.arange(1, 4 * reduction * enough)
    store = types.SimpleNamespace(
        ids=[str(n) for n in lengths], texts=[text] * len(lengths), lengths=lengths, folder="here"
    )
    kept, _ = train.Part.encode(store, bpe, reduction=reduction)
    assert lengths[kept.indices].min() == reduction * (enough - 1) + 1
    if reduction == 8:
        encoder = new_model(bpe)
        shortest = int(lengths[kept.indices].min())
        rows = encoder.encode(np.zeros((shortest, 40), np.float32), np.array([shortest]))[1]
        assert rows.tolist() == [enough]
        default, _ = train.Part.encode(store, bpe)
        assert default.indices.tolist() == kept.indices.tolist()


def test_transcripts_with_unknown_characters_are_listed(handful):
    _, bpe, _ = handful
    texts = ["ONE", "ROOM 101", "TWO", "SEPT É", "ONE \u2581", "THREE"]
    store = types.SimpleNamespace(
        ids=list("abcdef"), texts=texts, lengths=np.array([80, 80, 900, 80, 80, 81]), folder="here"
    )
    part, problems = train.Part.encode(store, bpe, max_frames=800)
    assert part.indices.tolist() == [0, 5]
    assert [p.where for p in problems] == ["b", "d", "e", "c"]
    for problem, character in zip(problems, "1É\u2581", strict=False):
        assert "the vocabulary does not know the character" in problem.reason and character in problem.reason
    assert "too long" in problems[3].reason
    assert [part.targets[i].tolist() for i in part.indices] == [bpe.encode("ONE"), bpe.encode("THREE")]
    with pytest.raises(UserError, match="utterance b: the vocabulary does not know .*--strict"):
        train.Part.encode(store, bpe, max_frames=800, strict=True)
    with pytest.raises(UserError, match="too long"):
        store.texts = ["ONE"] * 6
        train.Part.encode(store, bpe, max_frames=10)
    store.texts = ["1"] * 6
    with pytest.raises(UserError, match="no utterance in here can be used; the first problem is a: the vocabulary"):
        train.Part.encode(store, bpe)


def test_dev_evaluation_does_not_depend_on_batches(handful):
    part, bpe, _ = handful
    model = new_model(bpe)
    one = dataclasses.replace(SETTINGS, batch_frames=int(part.store.lengths.max()))
    many = dataclasses.replace(SETTINGS, batch_frames=100000)
    (loss_a, wer_a), (loss_b, wer_b) = (train.evaluate(model, part, bpe, s) for s in (one, many))
    # float32: products of other shapes round differently, the loss of an untrained model is about 100
    assert math.isclose(loss_a, loss_b, rel_tol=1e-5) and wer_a == wer_b
