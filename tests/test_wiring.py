"""What training and cascade hand on: every setting, teacher, seed and part arrives where it should, and nothing else.

Three habits make the difference here.  No part equals another (words, loudness, lengths), so that taking the wrong one
shows.  No setting has its usual value, so that a default in its place shows.  And steps are done again by hand from
what the networks were given, so that a number that was dropped on the way shows.
"""

import csv
import dataclasses
import itertools
import json
import math
import shutil
import types

import numpy as np
import pytest
import soundfile
from handful import StopAfter

from mini_pkd import cascade, report, train, vocabulary_file
from mini_pkd.audio_file import read_audio
from mini_pkd.bpe import BPE, word_counts
from mini_pkd.corpus import epoch_batches
from mini_pkd.corpus_folder import read_part
from mini_pkd.fast_beam import beam_search
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.features import mfcc
from mini_pkd.lattice_kl import distillation_loss, materialised_kl_and_gradients
from mini_pkd.layers import NO_DROPOUT, DropoutKeys
from mini_pkd.model_file import load_model
from mini_pkd.optimizer import Adam, learning_rate
from mini_pkd.prepared_corpus import Part
from mini_pkd.rnnt_loss import materialised_loss_and_gradients, rnnt_loss
from mini_pkd.scales import TINY, Settings, Size
from mini_pkd.seeds import generator
from mini_pkd.tensor import is_recording, no_grad
from mini_pkd.training_state import MAX_BAD_STEPS
from mini_pkd.transcript_file import read_transcript, write_transcript
from mini_pkd.transducer import Transducer

# Part: (loudness, its texts).  Of training's letters A B is the most frequent pair, of all parts' together B A.
CORPUS = {
    "train": (0.3, ["AB"] * 9 + ["ABAB"] * 2),
    "dev": (0.02, ["AB", "BA", "BA AB BA"]),
    "test-clean": (0.9, ["AB", "BA BA", "AB", "BA AB BA"]),
    "test-other": (0.1, ["BA", "AB", " ".join(["BA"] * 20)]),
}
SIZE = Size(blocks=3, width=8, heads=2, window=4, kernel=2, expansion=1, joint_width=8, lstm_layers=2, lstm_width=6)
SIZES = [f"{size}.{key}={value}" for size in TINY.sizes for key, value in dataclasses.asdict(SIZE).items()]

# Of everything that training reads, no number is the usual one.
UNUSUAL = dataclasses.replace(
    TINY.settings, epochs=4, dev_every=4, batch_utterances=3, batch_frames=150, max_frames=140,
    peak_rate=0.01, warmup_steps=3, floor_rate=0.4, clip=0.7, dropout=0.3, curriculum_epochs=2,
    alpha=0.3, temperature=2.5, kl="collapsed", kl_weighting="paths", mixing="convex", keep_mb=1, max_symbols=2,
    max_warp_fraction=0.3, time_masks=1, max_time=5, max_time_fraction=0.3, freq_masks=2, max_freq=6,
)  # fmt: skip
NOT_READ_BY_TRAINING = {"data", "vocab_size", "checkpoint_minutes", "beam", "feature_type"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Noise of 0.2 to 0.9 s in LibriSpeech's layout.  The first utterance of a part (in training, the first four) has
    4 frames, which the encoder makes one row of."""
    root, rng = tmp_path_factory.mktemp("wiring") / "noises", np.random.default_rng(0)
    for speaker, (part, (loudness, texts)) in enumerate(CORPUS.items(), start=1):
        folder = root / part / str(speaker) / "1"
        folder.mkdir(parents=True)
        ids = [f"{speaker}-1-{n:04d}" for n in range(len(texts))]
        for n, name in enumerate(ids):
            short = n < (4 if part == "train" else 1)
            samples = 800 if short else rng.integers(3200, 14400)
            soundfile.write(folder / f"{name}.wav", loudness * rng.uniform(-1, 1, samples), 16000)
        lines = [f"{name} {text}\n" for name, text in zip(ids, texts, strict=True)]
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def parts(corpus, tmp_path_factory):
    """(training Part, dev Part, BPE): two parts that share no utterance."""
    utterances = {role: read_part(corpus / role)[0] for role in ("train", "dev")}
    bpe = BPE.train(word_counts(u.text for u in utterances["train"]), 5)
    stores = [FeatureStore.build(tmp_path_factory.mktemp("stores") / role, utterances[role]) for role in utterances]
    for store in stores:
        store.normaliser = estimate_normaliser(stores[:1])
    (training, _), (dev, _) = (Part.encode(store, bpe, UNUSUAL.max_frames) for store in stores)
    assert not set(training.store.ids) & set(dev.store.ids)
    return training, dev, bpe


def new_model(bpe, seed=0, **sizes):
    return Transducer(dataclasses.replace(SIZE, **sizes).config(bpe.size), generator(seed, "weights"))


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.named_parameters().values()])


def log_of(folder):
    return list(csv.DictReader((folder / "log.csv").read_text().splitlines()))


def loss_by_hand(model, part):
    """The mean RNN-T loss of a part, utterance by utterance."""
    losses = []
    for i in part.indices:
        batch = part.batch([i])
        with no_grad():
            inputs, lengths = model.lattice_inputs(batch, batch.features)
            losses.append(float(rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)[0].data))
    return np.mean(losses)


# --- what the networks are given ------------------------------------------------------------------


class Keys:
    """Dropout keys that remember what was drawn."""

    def __init__(self, source):
        self.rate, self.source, self.drawn = source.rate, source, []

    def next(self):
        self.drawn.append(self.source.next())
        return self.drawn[-1]


@dataclasses.dataclass
class Seen:
    """One call of a network: who, what, and whether it was recorded for a backward pass."""

    who: str
    training: bool
    batch: object
    features: np.ndarray
    keys: Keys

    def of_utterances(self):
        pieces = np.split(self.features, np.cumsum(self.batch.lengths)[:-1])
        return dict(zip(self.batch.ids, pieces, strict=True))


def watch(network, who, seen):
    """Note in `seen` what the network is given from now on."""
    inner = network.lattice_inputs

    def lattice_inputs(batch, features, dropout=NO_DROPOUT):
        keys = Keys(dropout)
        seen.append(Seen(who, is_recording(), batch, features.copy(), keys))
        return inner(batch, features, keys)

    network.lattice_inputs = lattice_inputs
    return network


@dataclasses.dataclass
class Watched:
    """A training that was watched."""

    student: list  # Seen, a step each
    teacher: list
    dev: list
    model: Transducer
    result: dict
    log: list
    epochs: list  # the student's again, as lists of an epoch each


def planned(part, settings, seed=7):
    """The batches that every epoch should have."""
    return [
        epoch_batches(part.store.lengths, settings.batch_frames, settings.batch_utterances, seed=seed, epoch=epoch,
                     indices=part.indices, curriculum_epochs=settings.curriculum_epochs)
        for epoch in range(settings.epochs)
    ]  # fmt: skip


@pytest.fixture
def watched(parts, tmp_path):
    """A function that trains with UNUSUAL, less what is asked for, and tells what the networks were given."""
    training, dev, bpe = parts
    counter = iter(range(100))

    def run(teacher=None, seed=7, name="S1", **changes):
        seen, folder = [], tmp_path / str(next(counter))
        model = watch(new_model(bpe), "student", seen)
        if teacher is not None:
            watch(teacher, "teacher", seen)
        settings = dataclasses.replace(UNUSUAL, **changes)
        result = train.train(model, training, dev, bpe, settings, folder, seed, name, teacher, progress=False)
        steps = [s for s in seen if s.who == "student" and s.training]
        ends = np.cumsum([0, *map(len, planned(training, settings))])
        assert ends[-1] == len(steps)
        return Watched(
            steps, [s for s in seen if s.who == "teacher"], [s for s in seen if s.who == "student" and not s.training],
            model, result, log_of(folder), [steps[a:z] for a, z in zip(ends, ends[1:], strict=False)],
        )  # fmt: skip

    return run


def test_no_setting_of_these_tests_is_the_usual_one():
    """A setting that is new must get a place here: where defaults are used, one that is not passed goes unnoticed."""
    for field in dataclasses.fields(Settings):
        if field.name not in NOT_READ_BY_TRAINING:
            value = getattr(UNUSUAL, field.name)
            assert value != getattr(TINY.settings, field.name) and value != field.default, field.name


def test_student_and_teacher_see_the_same_masked_features_and_only_the_student_drops(watched, parts):
    run = watched(new_model(parts[2], seed=9))
    assert len(run.student) == len(run.teacher) == run.result["updates"]
    for student, teacher in zip(run.student, run.teacher, strict=True):
        assert student.batch.ids == teacher.batch.ids and not teacher.training
        assert np.array_equal(student.features, teacher.features)
        assert (student.keys.rate, teacher.keys.rate) == (UNUSUAL.dropout, 0.0)
        raw = np.concatenate([parts[0].store[parts[0].store.ids.index(i)] for i in student.batch.ids])
        assert not np.array_equal(student.features, raw)


def test_masks_follow_from_seed_model_epoch_and_utterance(watched):
    def masked(**changes):  # {(epoch, utterance): rows}
        epochs = enumerate(watched(curriculum_epochs=0, **changes).epochs)
        return {(e, i): rows for e, epoch in epochs for s in epoch for i, rows in s.of_utterances().items()}

    first, other_batches = masked(), masked(batch_utterances=2)
    other_model, other_seed = masked(name="B1"), masked(seed=8)
    assert first.keys() == other_batches.keys() == other_model.keys() == other_seed.keys()
    for epoch, i in first:
        assert np.array_equal(first[epoch, i], other_batches[epoch, i])
        assert not np.array_equal(first[epoch, i], other_model[epoch, i])
        assert not np.array_equal(first[epoch, i], other_seed[epoch, i])
        if epoch:
            assert not np.array_equal(first[epoch, i], first[0, i])
    nothing = watched(max_warp_fraction=0.0, time_masks=0, freq_masks=0)
    assert all(np.array_equal(s.features, s.batch.features) for s in nothing.student)


def test_every_step_drops_other_elements(watched):
    run = watched()
    keys = [pair for s in run.student for pair in s.keys.drawn]
    assert len(keys) > len(run.student) and {rate for rate, _ in keys} == {UNUSUAL.dropout}
    assert len({key for _, key in keys}) == len(keys)
    assert keys[0] not in [pair for s in watched(seed=8).student for pair in s.keys.drawn]


def test_every_epoch_has_its_own_batches_and_the_first_ones_the_curriculum(watched, parts):
    training, ids = parts[0], parts[0].store.ids
    orders = [[[ids[i] for i in batch] for batch in batches] for batches in planned(training, UNUSUAL)]
    run = watched()
    assert [[s.batch.ids for s in epoch] for epoch in run.epochs] == orders
    utterances = [sum(map(len, batches)) for batches in orders]
    assert utterances[0] < utterances[1] < utterances[2] == utterances[3] == len(ids)
    assert orders[2] != orders[3]
    assert orders != [[[ids[i] for i in batch] for batch in batches] for batches in planned(training, UNUSUAL, seed=8)]


def test_training_sees_the_training_set_and_looks_at_the_dev_set(watched, parts):
    training, dev, _ = parts
    run = watched()
    assert {i for s in run.student for i in s.batch.ids} == set(training.store.ids)
    assert sorted(i for s in run.dev for i in s.batch.ids) == sorted(dev.store.ids)  # once: dev_every is 4
    for s in run.dev:
        assert s.keys.rate == 0 and np.array_equal(s.features, s.batch.features)
    assert run.result["best_dev_loss"] == pytest.approx(loss_by_hand(run.model, dev), rel=1e-5)
    assert [row["dev_loss"] != "" for row in run.log] == [False, False, False, True]
    looks = [row["dev_loss"] != "" for row in watched(dev_every=3).log]
    assert looks == [False, False, True, True]


# --- what becomes of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["add", "convex"])
@pytest.mark.parametrize("kl", ["full", "collapsed"])
@pytest.mark.parametrize("kl_weighting", ["nodes", "paths"])
def test_the_loss_is_the_formula_of_the_settings(parts, kl, mixing, kl_weighting):
    """Against all logits in memory: RNN-T and KL, mixed here by hand."""
    training, _, bpe = parts
    alpha, temperature = 0.3, 2.5
    settings = dataclasses.replace(
        UNUSUAL, alpha=alpha, temperature=temperature, kl=kl, mixing=mixing, kl_weighting=kl_weighting
    )
    student, teacher = new_model(bpe), new_model(bpe, seed=9, joint_width=12)
    batch = training.batch([0, 3, 5])
    features = batch.features + 1

    def arrays(network, dropout=NO_DROPOUT):
        inputs, lengths = network.lattice_inputs(batch, features, dropout)
        return tuple(tensor.data.astype(np.float64) for tensor in inputs), lengths

    (ours, lengths), (theirs, _) = arrays(student, DropoutKeys(0.3, generator(5))), arrays(teacher)
    sizes = (batch.labels, lengths, batch.label_lengths)
    rnnt, _ = materialised_loss_and_gradients(*ours, *sizes)
    kls, _ = materialised_kl_and_gradients(ours, theirs, *sizes, kl, temperature, kl_weighting)
    expected = rnnt + alpha * kls if mixing == "add" else (1 - alpha) * rnnt + alpha * kls

    found = train.lattice_loss(student, teacher, batch, features, settings, DropoutKeys(0.3, generator(5)))
    # float32 rows on our side; the logits' rounding is summed over some twenty nodes
    assert float(found[0].data) == pytest.approx(expected.mean(), rel=1e-5)
    np.testing.assert_allclose(found[1], rnnt, rtol=1e-5)
    np.testing.assert_allclose(found[2], kls, rtol=1e-4)
    alone = train.lattice_loss(student, None, batch, features, settings, DropoutKeys(0.3, generator(5)))
    assert float(alone[0].data) == pytest.approx(rnnt.mean(), rel=1e-5) and not alone[2].any()


class Played:
    """Dropout keys that were drawn before."""

    def __init__(self, keys):
        self.rate, self.drawn = keys.rate, iter(keys.drawn)

    def next(self):
        return next(self.drawn)


@pytest.mark.parametrize("taught", [True, False])
def test_training_again_by_hand_ends_in_the_same_weights(watched, parts, taught):
    """From the features and dropout keys that the student was given: losses, clipping and learning rate as set."""
    bpe = parts[2]
    run = watched(new_model(bpe, seed=9) if taught else None)
    model, teacher = new_model(bpe), new_model(bpe, seed=9)
    adam, rates, norms, log = Adam(model, clip=0.7), [], [], []
    for step, seen in enumerate(run.student, start=1):
        batch = seen.batch
        inputs, lengths = model.lattice_inputs(batch, seen.features, Played(seen.keys))
        sizes = (batch.labels, lengths, batch.label_lengths)
        if taught:
            with no_grad():
                teachers, _ = teacher.lattice_inputs(batch, seen.features)
            loss, rnnt, kl = distillation_loss(
                inputs, [tensor.data for tensor in teachers], *sizes,
                alpha=0.3, temperature=2.5, kind="collapsed", mixing="convex", kl_weighting="paths",
            )  # fmt: skip
        else:
            loss, rnnt = rnnt_loss(*inputs, *sizes)
            kl = 0 * rnnt
        loss.backward()
        rates.append(learning_rate(step, len(run.student), peak=0.01, warmup=3, floor=0.4))
        norms.append(adam.step(rates[-1]))
        log.append((float(loss.data), rnnt.mean(), kl.mean(), norms[-1]))
    assert np.array_equal(weights(model), weights(run.model))
    assert max(norms) > 0.7 and rates[-1] == pytest.approx(0.004) and max(rates) == 0.01  # clip and floor were at work
    ends = np.cumsum([len(epoch) for epoch in run.epochs])
    for row, steps in zip(run.log, np.split(np.array(log), ends[:-1]), strict=True):
        written = [float(row[column]) for column in ("loss", "rnnt", "kl", "gradient_norm")]
        np.testing.assert_allclose(written, steps.mean(axis=0), atol=1e-4)


def test_the_best_weights_survive_a_restart(parts, tmp_path):
    """The rate is far too high once the warm-up is over, so the first look at the dev set is the best one."""
    training, dev, bpe = parts
    settings = dataclasses.replace(UNUSUAL, epochs=2, dev_every=1, peak_rate=1.0, warmup_steps=100, clip=100.0,
                                   curriculum_epochs=0)  # fmt: skip
    steps = len(planned(training, settings)[0])

    def run(folder, looks=1000):
        model = new_model(bpe)
        stop = StopAfter(looks)
        return model, train.train(model, training, dev, bpe, settings, folder, 7, "S1", None, stop, progress=False)

    whole, result = run(tmp_path / "whole")
    losses = [float(row["dev_loss"]) for row in log_of(tmp_path / "whole")]
    assert losses[0] < losses[1] and result["best_dev_wer"] == 1.0
    with pytest.raises(train.Interrupted):
        run(tmp_path / "cut", steps + 1)  # in the second epoch
    resumed, again = run(tmp_path / "cut")
    assert np.array_equal(weights(resumed), weights(whole)) and again | {"seconds": 0} == result | {"seconds": 0}
    assert result["best_dev_loss"] == pytest.approx(loss_by_hand(resumed, dev), rel=1e-5)


class Unsound(FeatureStore):
    """A store one of whose utterances is not made of numbers."""

    def __getitem__(self, i):
        return super().__getitem__(i) * (np.float32(np.nan) if i == 4 else 1)


def test_bad_steps_that_are_not_in_a_row_do_not_stop_the_run(parts, tmp_path):
    training, dev, bpe = parts
    unsound = dataclasses.replace(training, store=Unsound(training.store.folder, training.store.normaliser))
    epochs = MAX_BAD_STEPS + 3
    settings = dataclasses.replace(UNUSUAL, epochs=epochs, batch_utterances=1, curriculum_epochs=0)
    result = train.train(new_model(bpe), unsound, dev, bpe, settings, tmp_path, 7, "S1", progress=False)
    assert result["skipped_updates"] == epochs and result["updates"] == epochs * (len(training.indices) - 1)


@pytest.mark.parametrize("frames", range(1, 18))
def test_an_utterance_counts_as_many_rows_as_the_encoder_makes_of_it(frames):
    """... and five symbols fit into each: a sixth would be a transcript of something else."""
    bpe = BPE.train({"AB": 1}, 6)  # which is one symbol then
    rows = len(new_model(bpe).encode(np.zeros((frames, 40), np.float32), [frames])[0])
    assert rows == math.ceil(frames / 8)
    texts = [" ".join(["AB"] * (5 * rows + more)) for more in (0, 1)]
    store = types.SimpleNamespace(
        ids=["fits", "one more"], texts=texts, lengths=np.array([frames, frames]), folder="here"
    )
    kept, problems = Part.encode(store, bpe)
    assert kept.indices.tolist() == [0] and [p.where for p in problems] == ["one more"]


# --- the cascade ----------------------------------------------------------------------------------


STILL = ("vocab_size=5", "epochs=1", "peak_rate=1e-30", "beam=3", "batch_utterances=20", "dropout=0", "time_masks=0",
         "freq_masks=0", "max_warp_fraction=0", "alpha=0.5")  # fmt: skip


def command(corpus, out, *more):
    assert cascade.main([*SIZES, "--data", str(corpus), "--out", str(out), "--jobs", "1", *map(str, more)]) == 0
    return out


@pytest.fixture(scope="session")
def lesson(corpus, tmp_path_factory):
    """A run whose T1 has learned to say AB, two symbols, whatever it hears: sometimes that is right.

    In decoding it may say one symbol per row, and so nothing whole in utterances of one row.
    """
    out = tmp_path_factory.mktemp("runs") / "lesson"
    return command(corpus, out, "--only", "T1", "vocab_size=5", "epochs=40", "dev_every=40", "peak_rate=0.05",
                   "warmup_steps=5", "batch_utterances=6", "max_symbols=1")  # fmt: skip


@pytest.fixture(scope="session")
def still(corpus, tmp_path_factory):
    """{seed: a run whose models stay what they were drawn as}: steps of 1e-30 are none.

    Each takes one step only, on all utterances as they are.
    """
    root = tmp_path_factory.mktemp("runs")
    return {seed: command(corpus, root / f"still-{seed}", "--seed", seed, *STILL) for seed in (0, 1)}


def results_of(out):
    models = json.loads((out / "results.json").read_text())["models"]
    return {m["name"]: m for m in models}


def test_vocabulary_and_normaliser_know_the_training_set_only(lesson, corpus):
    utterances = {role: read_part(corpus / role)[0] for role in CORPUS}
    every = [u for part in utterances.values() for u in part]
    bpe, *others = (
        BPE.train(word_counts(u.text for u in those), 5) for those in (utterances["train"], every, utterances["dev"])
    )
    assert bpe not in others
    _, normaliser, used, _ = load_model(lesson / "T1" / "model.npz")
    assert used == bpe == vocabulary_file.load(lesson / "vocabulary.json")

    def normalised(those):
        rows = normaliser(np.concatenate([mfcc(read_audio(u.audio)) for u in those]))
        return np.abs(rows.mean(axis=0)).max() + np.abs(rows.std(axis=0) - 1).max()

    assert normalised(utterances["train"]) < 1e-4 and normalised(every) > 0.1


def test_the_dev_score_is_that_of_the_dev_set(lesson, corpus, parts):
    model, normaliser, bpe, _ = load_model(lesson / "T1" / "model.npz")

    def loss(role):
        store = FeatureStore.build(lesson.parent / "by hand" / role, read_part(corpus / role)[0], normaliser)
        return loss_by_hand(model, Part.encode(store, bpe)[0])

    expected = {role: loss(role) for role in CORPUS}
    others = [expected[role] for role in CORPUS if role != "dev"]
    assert min(abs(other - expected["dev"]) for other in others) > 0.01
    assert results_of(lesson)["T1"]["best_dev_loss"] == pytest.approx(expected["dev"], rel=1e-5)
    assert results_of(lesson)["T1"]["best_dev_wer"] == pytest.approx(4 / 5)  # - AB AB for AB, BA, BA AB BA


def test_a_model_that_is_right_sometimes(lesson, corpus):
    """AB for everything but the utterance of one row: then neither WER nor SER is 1, and they are two numbers."""
    m = results_of(lesson)["T1"]
    for part in ("test-clean", "test-other"):
        ids = [u.id for u in read_part(corpus / part)[0]]
        assert list(read_transcript(lesson / "T1" / f"{part}.txt").values()) == ["", *["AB"] * (len(ids) - 1)]
    assert m["edits"] == {"test-clean": [1, 4, 0], "test-other": [1, 20, 0]}
    assert m["wer"] == {"test-clean": pytest.approx(5 / 7), "test-other": pytest.approx(21 / 22)}
    assert m["ser"] == {"test-clean": pytest.approx(3 / 4), "test-other": pytest.approx(2 / 3)}
    for key in ("wer", "ser"):
        low, high = m[f"{key}_ci95"]["test-clean"]
        assert low < m[key]["test-clean"] < high
    assert m["wer_ci95"]["test-clean"] != m["ser_ci95"]["test-clean"]


def test_seed_and_name_draw_the_first_weights(still):
    def first(seed, name):
        return weights(load_model(still[seed] / name / "model.npz")[0])

    drawn = [first(seed, name) for seed in (0, 1) for name in ("T1", "S1", "B1")]  # all of one size
    for a, b in itertools.combinations(drawn, 2):
        assert np.mean(np.abs(a - b) > 1e-3) > 0.5  # the rest are biases and gains that begin at 0 and 1


def test_every_student_learns_from_its_own_teacher(still, corpus):
    """What a log says of the KL, again by hand from the models that stayed as they were."""
    models = {name: load_model(still[0] / name / "model.npz")[0] for name in results_of(still[0])}
    _, normaliser, bpe, _ = load_model(still[0] / "T1" / "model.npz")
    store = FeatureStore.build(still[0].parent / "by hand" / "train", read_part(corpus / "train")[0], normaliser)
    batch = Part.encode(store, bpe)[0].batch(range(len(store)))

    def kl(student, teacher):
        pair = models[student], models[teacher]
        return train.lattice_loss(*pair, batch, batch.features, TINY.settings)[2].mean()

    for model in TINY.models():
        logged = float(log_of(still[0] / model.name)[0]["kl"])
        others = set(models) - {model.name, model.teacher}
        assert logged == (pytest.approx(kl(model.name, model.teacher), rel=1e-3) if model.teacher else 0)
        assert all(kl(model.name, other) != pytest.approx(logged, rel=1e-2) for other in others)


def decoded(out, corpus, beam, max_symbols):
    """{(model, part, utterance): text} of a run's models, decoded here."""
    found = {}
    for name in results_of(out):
        model, normaliser, bpe, _ = load_model(out / name / "model.npz")
        for part in ("test-clean", "test-other"):
            for u in read_part(corpus / part)[0]:
                rows = normaliser(mfcc(read_audio(u.audio)).astype(np.float32))
                best = beam_search(model, *model.encode(rows, [len(rows)]), beam, max_symbols)[0][0]
                found[name, part, u.id] = bpe.decode(best.labels)
    return found


def written(out):
    """... and as they stand in its folders."""
    return {
        (name, part, i): text
        for name in results_of(out)
        for part in ("test-clean", "test-other")
        for i, text in read_transcript(out / name / f"{part}.txt").items()
    }


def test_beam_and_symbols_per_row_are_those_of_the_settings(still, lesson, corpus):
    assert written(still[0]) == decoded(still[0], corpus, beam=3, max_symbols=12)
    for beam in (1, 8):
        assert written(still[0]) != decoded(still[0], corpus, beam, max_symbols=12)
    assert written(lesson) == decoded(lesson, corpus, beam=8, max_symbols=1)
    assert written(lesson) != decoded(lesson, corpus, beam=8, max_symbols=12)


def test_a_paired_difference_is_the_first_minus_the_second(still, corpus):
    """S1 is given perfect transcripts, B1 none that is right: where all do equally badly, both orders look alike."""
    out = still[0].parent / "paired"
    shutil.copytree(still[0], out)
    references = {u.id: u.text for u in read_part(corpus / "test-clean")[0]}
    write_transcript(out / "S1" / "test-clean.txt", references)
    write_transcript(out / "B1" / "test-clean.txt", dict.fromkeys(references, ""))
    command(corpus, out, *STILL)
    paired = {(p["a"], p["b"], p["set"]): p for p in report.read_results(out)["paired"]}
    test = paired["S1", "B1", "test-clean"]
    assert test["difference"] == test["low"] == test["high"] == -1.0 and test["p"] < 0.05
    assert "S1 beats B1 on test-clean" in (out / "report.md").read_text()
