"""The training loop on real utterances of data_small/numbers: overfitting, stopping and resuming, bad numbers."""

import dataclasses
import math
import types
from pathlib import Path

import numpy as np
import pytest

from mini_pkd import UserError, checkpoint, train, wer
from mini_pkd.bpe import BPE
from mini_pkd.corpus import read_part, word_counts
from mini_pkd.decode import beam_search, greedy
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.scales import TINY, Size
from mini_pkd.specaugment import generator
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
    bpe = BPE.train(word_counts(utterances), 48)
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
    train.save_model(path, model, normaliser, bpe, training=result)
    loaded, normaliser, bpe, about = train.load_model(path)
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
    with pytest.raises(UserError, match="5 steps in a row of T1 .* not finite"):
        train.train(new_model(bpe), part, part, bpe, settings, tmp_path / "b", 0, "T1", progress=False)
    assert len(before_after) == train.MAX_BAD_STEPS
    assert all(np.array_equal(w, before_after[0]) for w in before_after)


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


def test_foreign_and_mismatched_model_files(handful, tmp_path):
    part, bpe, normaliser = handful
    path = tmp_path / "model.npz"
    checkpoint.save(path, {"a": np.zeros(3)}, {"hello": 1})
    with pytest.raises(UserError, match="not a model"):
        train.load_model(path)
    train.save_model(path, Transducer(SIZE.config(bpe.size + 1), generator(0, "weights")), normaliser, bpe)
    with pytest.raises(UserError, match="do not belong together"):
        train.load_model(path)
    model = new_model(bpe)
    train.save_model(path, model, normaliser, bpe)
    arrays, meta = checkpoint.load(path)
    arrays["weights/output_bias"] = arrays["weights/output_bias"][:-1]
    checkpoint.save(path, arrays, meta)
    with pytest.raises(UserError, match="output_bias has shape"):
        train.load_model(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut short"):
        train.load_model(path)


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


def test_dev_evaluation_does_not_depend_on_batches(handful):
    part, bpe, _ = handful
    model = new_model(bpe)
    one = dataclasses.replace(SETTINGS, batch_frames=int(part.store.lengths.max()))
    many = dataclasses.replace(SETTINGS, batch_frames=100000)
    (loss_a, wer_a), (loss_b, wer_b) = (train.evaluate(model, part, bpe, s) for s in (one, many))
    # float32: products of other shapes round differently, the loss of an untrained model is about 100
    assert math.isclose(loss_a, loss_b, rel_tol=1e-5) and wer_a == wer_b
