"""The dry run: what it counts, what it times, and the sums it makes of them."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from chirps import MODELS, SETTINGS, refusal, words_of

from mini_pkd import cascade, dry_run
from mini_pkd.dry_run import GAUSS, Role, describe, in_all, micro_batches
from mini_pkd.estimate import flop_of_utterances, forward_flop, model_bytes
from mini_pkd.plan import Plan
from mini_pkd.prepared_corpus import prepare_corpus
from mini_pkd.scales import FULL, SMALL, TINY
from mini_pkd.transducer import count_parameters

SCALE = TINY.override(SETTINGS)


# --- the command ----------------------------------------------------------------------------------


def rows_of(text):
    return {line.split()[0]: line.split() for line in text.splitlines()}


def test_a_dry_run_measures_and_writes_nothing(data, tmp_path, finished, capfd):
    """Steps of these models take milliseconds, so all that can be said of times is that there are some."""
    assert cascade.main(words_of(data, tmp_path / "run", "--dry-run", "--ranks", 3, "max_frames=60")) == 0
    said = capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    rows = rows_of(said)
    assert [rows[name][-1] for name in MODELS] == [teacher or "-" for teacher in MODELS.values()]
    assert float(rows["T1"][1]) == round(json.loads((finished / "T1" / "result.json").read_text())["params"] / 1e6, 3)
    for name in MODELS:
        memory, gflop, epoch, in_all, cpu = (float(rows[name][i]) for i in (3, 5, 6, 8, 10))
        assert len(rows[name]) == 13 and memory > 0 and gflop > 0 and min(epoch, in_all, cpu) >= 0
    assert "12 utterances (its audio files); left out: " in said and " too long (max_frames=60)." in said
    assert "Time in all: " in said and "\nAt 3 ranks: " in said
    assert cascade.main(words_of(data, finished, "--dry-run")) == 0
    said = capfd.readouterr().out
    assert "12 utterances (its feature store); none is left out." in said and "ranks" not in said
    assert "warm-up: 1 of them, 17%." in said and "in parts of" not in said and "no WER" not in said


@pytest.fixture
def measured(monkeypatch):
    """Makes up the times, and notes what was asked: every FLOP 1 ns on short micro-batches and 3 ns on longer ones."""
    asked = SimpleNamespace(waited=0.0)

    def measure(configs, pairs, settings, batches, jobs, show):
        asked.pairs, asked.batches, asked.jobs = pairs, batches, jobs
        of_pair = {"step": np.array([[1e-9, 2e-9], [3e-9, 4e-9]]), "update": np.array([0.25, 0.5])}
        of_size = {"dev": np.array([1e-9, 2e-9]), "beam": np.array([1e-2, 2e-2])}
        return dict.fromkeys(pairs, of_pair), dict.fromkeys(configs, of_size), asked.waited

    monkeypatch.setattr(dry_run, "measure", measure)
    monkeypatch.setattr(dry_run.warm_up, "ensure", lambda: None)
    return asked


def test_what_is_not_there_is_as_in_librispeech(measured, tmp_path, capfd):
    assert cascade.main(["--scale", "full", "--dry-run", "--data", str(tmp_path / "LibriSpeech"), "--memory", "1"]) == 0
    said = capfd.readouterr().out
    assert "960.13 h in 281241 utterances (as in LibriSpeech" in said
    assert "batches of 64 utterances or 80000 frames, in parts of 8000\n" in said
    assert "features 56.5 GB in float32 or 28.3 GB in float16 (feature_type=float32)" in said
    assert len(measured.pairs) == 14 and measured.jobs == 1 and ("46", "61") in measured.pairs
    assert all(frames.sum() <= 8000 for frames, _ in measured.batches)


def test_a_model_costs_its_steps_updates_looks_and_decoding(data, finished, measured, capfd, monkeypatch):
    """Against the plan of a training on the prepared corpus, and sums by hand."""
    scale = TINY.override([*SETTINGS, "epochs=7", "dev_every=3", "curriculum_epochs=3", "dev_updates=4",
                           "dev_utterances=2"])  # fmt: skip
    run = cascade.Cascade(scale, data, finished, seed=3)
    corpus = prepare_corpus(data, finished.parent / "features", scale.settings, progress=False)
    costs = {}
    real = dry_run.Cost.of

    def of(config, *arguments):
        costs[len(costs)] = config, real(config, *arguments)
        return costs[len(costs) - 1][1]

    monkeypatch.setattr(dry_run.Cost, "of", of)
    describe(run, 1)
    assert len(costs) == len(MODELS)
    for (config, cost), model in zip(costs.values(), scale.models(), strict=True):
        sizes = {m.name: scale.sizes[m.size].config(8) for m in scale.models()}
        teacher = model.teacher and SimpleNamespace(config=sizes[model.teacher])
        plan = Plan(corpus.train, scale.settings, 3, SimpleNamespace(config=sizes[model.name]), teacher)
        # a curriculum's share of the work is taken to be that of T1 alone
        np.testing.assert_allclose(cost.steps, plan.work[-1] * np.array([2e-9, 3e-9]), rtol=0.02 if teacher else 0.005)
        np.testing.assert_allclose(cost.updates, plan.updates * np.array([0.25, 0.5]))
        frames = corpus.dev.store.lengths
        labels = np.array([len(target) for target in corpus.dev.targets])
        look = forward_flop(config, frames.sum(), labels.sum(), (np.ceil(frames / 8) * (labels + 1)).sum()) / 2
        looks = 3 + plan.updates // 4  # after epochs 3, 6 and 7; two of four utterances
        np.testing.assert_allclose(cost.dev, looks * look * np.array([1e-9, 2e-9]))
        tests = sum(store.num_rows for store in corpus.tests.values())
        np.testing.assert_allclose(cost.beam, tests * np.array([1e-2, 2e-2]))
        np.testing.assert_allclose(cost.total, cost.steps + cost.updates + cost.dev + cost.beam)
    assert capfd.readouterr().err == ""


def test_others_on_the_machine_are_told(data, finished, measured):
    run = cascade.Cascade(SCALE, data, finished, progress=False)
    assert "Others are at work" not in describe(run, 2)
    measured.waited = 0.5
    assert "for each second of work a thread waited 0.5 s for a core" in describe(run, 2)


def test_ranks_are_a_projection(data, finished, measured):
    """The shares of an update shrink, the update and what it sends do not; more ranks than utterances do nothing."""
    run = cascade.Cascade(SCALE, data, finished, progress=False)

    def seconds(ranks):
        last = describe(run, 1, ranks=ranks).splitlines()[-1]
        assert last.startswith(f"At {ranks} ranks: ") and "a projection" in last
        number, unit = last.split(": ")[1].split(", ")[0].split()
        return float(number) * {"s": 1, "min": 60}[unit], last

    one, two, many = seconds(1)[0], seconds(2)[0], seconds(1000)
    updates = len(MODELS) * 6 * 0.25
    assert 0 < two - updates - (one - updates) / 2 < 0.1
    assert "4 processes" in many[1] and "the others have nothing to do, because an update has about 4 utt" in many[1]
    assert many[0] == seconds(4)[0]


def test_a_cascade_that_does_not_fit_is_not_timed(data, finished, measured, monkeypatch):
    monkeypatch.setattr(dry_run, "memory_free", lambda: 1e8)
    said = describe(cascade.Cascade(SCALE, data, finished, progress=False), 1)
    assert "Time: not measured, because 0.1 GB of memory are free here." in said and not hasattr(measured, "pairs")
    assert rows_of(said)["S3"][-1] == "S1"


def test_a_warm_up_that_is_cut_and_missing_test_sets_are_told(data, tmp_path, measured, capfd):
    for role in ("train", "dev"):
        shutil.copytree(data / role, tmp_path / "corpus" / role)
    assert cascade.main(words_of(tmp_path / "corpus", tmp_path / "run", "--dry-run", "warmup_steps=5")) == 0
    said = capfd.readouterr().out
    assert "Updates of a model: 6; warm-up: 1 of them, 17%, cut from warmup_steps=5.\n" in said
    assert "no test-clean and no test-other, so no WER will be reported" in said


def test_nothing_that_fits(data, tmp_path, measured, capfd):
    words = words_of(data, tmp_path / "run", "--dry-run", "max_frames=2")
    assert "has at most max_frames=2 frames; raise it" in refusal(capfd, words)


@pytest.mark.parametrize("words", [["--ranks", "2"], ["--dry-run", "--ranks", "0"]])
def test_ranks_want_a_dry_run(data, tmp_path, capfd, words):
    assert "--ranks is from 1 to 100000 and wants --dry-run" in refusal(capfd, words_of(data, tmp_path / "run", *words))


# --- its parts ------------------------------------------------------------------------------------


def test_audio_is_measured_as_the_store_does(data, finished, tmp_path):
    from_audio, symbols = dry_run.census(cascade.Cascade(SCALE, data, tmp_path / "run", progress=False))
    exact, others = dry_run.census(cascade.Cascade(SCALE, data, finished))
    assert symbols == others == 8
    assert from_audio.keys() == exact.keys() == {"train", "dev", "test-clean", "test-other"}
    for role, found in from_audio.items():
        assert np.abs(found.frames - exact[role].frames).max() <= 2
        assert np.array_equal(found.labels, exact[role].labels)
    corpus = prepare_corpus(data, finished.parent / "features", SCALE.settings, progress=False)
    assert exact["train"].labels.tolist() == [len(target) for target in corpus.train.targets]


def test_a_vocabulary_is_as_large_as_the_texts_allow(data, tmp_path, measured):
    scale = TINY.override([*SETTINGS, "vocab_size=500"])
    said = describe(cascade.Cascade(scale, data, tmp_path / "run", progress=False), 1)
    symbols = int(said.split(" symbols")[0].split()[-1])
    assert 8 < symbols < 20 and said.startswith(f"tiny: chirps, {symbols} symbols")
    size = count_parameters(scale.sizes["T1"].config(symbols))
    assert float(rows_of(said)["T1"][1]) == round(size / 1e6, 3)


def test_of_many_files_a_sample_is_read(data):
    utterances = dry_run.read_part(data / "train")[0]
    exact, sampled = (dry_run.sampled_frames(utterances, n) for n in (100, 5))
    assert len(sampled) == 12 and sampled[::2].tolist() == sampled[1::2].tolist() == exact[::2].tolist()


@pytest.mark.parametrize("scale", [SMALL, FULL], ids=["small", "full"])
def test_micro_batches_stand_where_gauss_wants_them(scale):
    """The rule is exact when seconds per operation are a polynomial of third degree in the share that lies below."""
    rng = np.random.default_rng(0)
    frames, s = rng.integers(100, 1500, 3000), scale.settings
    training, config = Role(frames, frames // 30, "invented"), scale.sizes["T1"].config(s.vocab_size)
    flop = flop_of_utterances(config, None, frames, frames // 30, s)
    shares = []
    for some, labels in micro_batches(training, s, config):
        assert some.sum() <= s.frames_at_once and len(some) <= s.batch_utterances and (labels == some // 30).all()
        shares.append([flop[frames < some.min()].sum() / flop.sum(), flop[frames <= some.max()].sum() / flop.sum()])
    for (low, high), point in zip(shares, GAUSS, strict=True):
        assert low <= point + 1e-9 and high >= point - 1e-9 and high - low < 0.05
    for power in range(4):
        assert np.mean(np.array(GAUSS) ** power) == pytest.approx(1 / (power + 1))


def models(**teachers):
    return [SimpleNamespace(name=name, teacher=teacher) for name, teacher in teachers.items()]


def test_models_side_by_side_wait_for_their_teachers():
    seconds = {"T1": 5.0, "S1": 3.0, "S3": 2.0, "B1": 4.0, "B2": 1.0}
    cascade_of_five = models(T1=None, S1="T1", S3="S1", B1=None, B2=None)
    assert in_all(cascade_of_five, seconds, 1) == 15.0
    assert in_all(cascade_of_five, seconds, 2) == 10.0  # T1 S1 S3 beside B1 B2
    assert in_all(cascade_of_five, seconds, 9) == 10.0
    assert in_all(cascade_of_five, seconds | {"B1": 12.0}, 2) == 12.0  # B2 goes between S1 and S3, or after
    assert in_all(models(T1=None, S1="T1"), {"T1": 5.0, "S1": 3.0}, 2) == 8.0


def test_sizes_of_files_are_those_of_the_models(data, finished, measured):
    said = describe(cascade.Cascade(SCALE, data, finished, progress=False), 2, seeds=3)
    each = [model_bytes(SCALE.sizes[model.size].config(8)) for model in SCALE.models()]
    assert f"models {dry_run.size(3 * sum(each))}, states of trainings {dry_run.size(12 * (each[0] + each[0]))}" in said
    assert each[0] == 4 * count_parameters(SCALE.sizes["T1"].config(8))
    assert "each model with 3 seeds" in said
    half = dataclasses.replace(SCALE, settings=dataclasses.replace(SCALE.settings, feature_type="float16"))
    assert "(feature_type=float16)" in describe(cascade.Cascade(half, data, finished, progress=False), 1)
