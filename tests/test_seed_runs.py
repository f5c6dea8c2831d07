"""seed_runs.py: each seed the run that it would be alone, a run that grows, and the numbers of all seeds pooled."""

import json
import os
import re
import shutil
import sys
import types

import numpy as np
import pytest
from chirps import MODELS, SETTINGS, refusal, results_of, snapshot, start, untrain, wait_for, weights, words_of
from invented_results import TWO_STAGES

from mini_pkd import cascade, checkpoint, processes, report, seed_runs, wer
from mini_pkd.corpus_folder import read_part
from mini_pkd.results import read_runs
from mini_pkd.run_folder import RunFolder
from mini_pkd.scales import TINY
from mini_pkd.transcript_file import read_transcript

TIMELESS = {"seconds": 0, "decoding_seconds": 0}


@pytest.fixture(scope="module")
def alone(data, finished):
    """The run of seed 1 alone."""
    out = finished.parent / "alone"
    assert cascade.main(words_of(data, out, "--seed", 1)) == 0
    return out


@pytest.fixture(scope="module")
def grown(data, finished):
    """A finished run of seed 0 to which seed 1 was added."""
    out = finished.parent / "grown"
    shutil.copytree(finished, out)
    assert cascade.main(words_of(data, out, "--seeds", 2)) == 0
    return out


@pytest.fixture
def copy_of_both(grown, request):
    out = grown.parent / f"both{abs(hash(request.node.name))}"
    shutil.copytree(grown, out)
    yield out
    shutil.rmtree(out)


def timeless(out):
    results = results_of(out)
    return [m | TIMELESS for m in results["models"]], results["paired"], results["speakers"]


# --- each seed is the run that it would be alone --------------------------------------------------


def test_each_seed_is_the_run_that_it_would_be_alone(grown, finished, alone):
    """The seed reaches every model: all weights as with that --seed, to the bit, and others than another seed's."""
    for folder, single in ((grown / "seed0", finished), (grown / "seed1", alone)):
        assert weights(folder) == weights(single)
        assert timeless(folder) == timeless(single)
        assert (folder / "config.json").read_text() == (single / "config.json").read_text()
        assert {p.name for p in folder.iterdir()} == {p.name for p in single.iterdir()}
    for name in MODELS:
        a, b = (checkpoint.load(grown / seed / name / "model.npz")[0] for seed in ("seed0", "seed1"))
        for key in ("weights/encoder.input.weight", "weights/joint.encoder.weight"):
            if key in a:
                assert np.mean(a[key] != b[key]) > 0.9, name
    assert (grown / "seed0" / "vocabulary.json").read_bytes() == (grown / "seed1" / "vocabulary.json").read_bytes()
    assert not list(grown.rglob("features"))  # those beside it serve every seed


def test_growing_moves_the_run_and_trains_nothing_again(grown, finished):
    for name in MODELS:
        old, new = (folder / name / "model.npz" for folder in (finished, grown / "seed0"))
        assert old.stat().st_mtime_ns == new.stat().st_mtime_ns
    assert {p.name for p in grown.iterdir() if not p.name.startswith("figure")} == {
        *("seed0", "seed1", "lock", "results.json", "report.md")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_side_by_side_from_nothing_and_killed(data, finished, grown, monkeypatch, kill):
    """Processes dealt over the models of both seeds end in the same bits, also when all are killed on the way."""
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)
    out = finished.parent / f"dealt-{kill}"
    words = words_of(data, out, "--jobs", 2, "--seeds", 2)
    done = {}
    if kill:
        process = start(words)
        try:
            wait_for(out / "seed1" / "T1" / "training.npz", process, seconds=500)  # six models on a busy machine
        finally:
            process.kill()
            process.communicate()
        done = {p: p.stat().st_mtime_ns for p in out.glob("*/*/model.npz")}
        assert done and not (out / "seed1" / "S3").exists()
    assert cascade.main(words) == 0
    for seed in ("seed0", "seed1"):
        assert weights(out / seed) == weights(grown / seed)
    assert {p: p.stat().st_mtime_ns for p in done} == done
    pooled = [json.loads((folder / "results.json").read_text()) for folder in (out, grown)]
    assert [[m | TIMELESS for m in p["models"]] for p in pooled[:1]] == [[m | TIMELESS for m in pooled[1]["models"]]]
    assert pooled[0]["paired"] == pooled[1]["paired"]


def test_slots_are_kept_busy_by_the_next_seed(monkeypatch):
    """Every model takes one tick: with two slots, 18 models of three seeds take 9 ticks, and no student is early."""
    clock, log = [0], []

    class Process:
        stdin, returncode = types.SimpleNamespace(close=lambda: None), 0

        def __init__(self, name):
            self.end = clock[0] + 1
            log.append((clock[0], name))

        def poll(self):
            return 0 if clock[0] >= self.end else None

    monkeypatch.setattr(processes, "_start", lambda words, jobs: Process(words[0]))
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + 1))
    order = sorted(TWO_STAGES.models(), key=lambda model: processes.ROLES.index(model.role))
    called = lambda name, seed: name and f"{name} of seed {seed}"  # noqa: E731
    queue = [
        processes.Job(called(m.name, s), called(m.teacher, s), [called(m.name, s)], lambda: True, lambda: None)
        for s in range(3)
        for m in order
    ]
    processes.train_side_by_side(queue, 2, types.SimpleNamespace(raised=False), print)
    began = {name: tick for tick, name in log}
    assert len(began) == 18 and clock[0] == 9
    assert all(began[job.teacher] < began[job.name] for job in queue if job.teacher)
    last = {seed: max(tick for name, tick in began.items() if name.endswith(seed)) for seed in "012"}
    assert last["0"] < last["1"] < last["2"]  # whole seeds, one after the other


# --- which folder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("several", [True, False])
def test_a_move_that_was_killed_is_continued(tmp_path, monkeypatch, several):
    """After every one of its steps; by a command of several seeds, or of one."""
    names = ["T1/model.npz", "S1/model.npz", "B2/training.npz", "vocabulary.json", "config.json", "skipped.txt"]
    for steps in range(len(names) + 1):
        out = tmp_path / f"{several}{steps}"
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text('{"seed": 0}')
        left = iter(range(steps))
        real = type(out).rename

        def rename(self, target, left=left, real=real):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(type(out), "rename", rename)
            try:
                RunFolder(out, TINY, 0, "c", True).settle(True)
                assert steps == len(names)
            except KeyboardInterrupt:
                pass
        folder = RunFolder(out, TINY, 0, "c", several)
        folder.settle(several)
        assert folder.path == out / "seed0" and all((out / "seed0" / name).exists() for name in names)
        assert not any((out / name).exists() for name in names)


def test_a_seed_is_found_where_it_lies(tmp_path):
    def path(seed, several=False):
        return RunFolder(tmp_path, TINY, seed, "c", several).path

    assert path(0) == path(5) == tmp_path and path(0, True) == tmp_path / "seed0"
    (tmp_path / "config.json").write_text('{"seed": 1}')
    assert path(1) == path(1, True) == tmp_path and path(0, True) == tmp_path / "seed0"
    assert path(0) == tmp_path  # whose settings then do not fit
    (tmp_path / "seed1").mkdir()
    (tmp_path / "config.json").rename(tmp_path / "seed1" / "config.json")
    assert [path(seed) for seed in (0, 1)] == [tmp_path / "seed0", tmp_path / "seed1"]
    long = RunFolder(tmp_path / ("x" * 300), TINY, 0, "c")
    assert long.path == long.out


def test_a_command_of_one_seed_in_a_folder_of_several(copy_of_both, data, capfd):
    pooled = (copy_of_both / "results.json").read_text()
    before = snapshot(copy_of_both / "seed1")
    assert cascade.main(words_of(data, copy_of_both, "--seed", 1)) == 0
    out = capfd.readouterr().out
    assert snapshot(copy_of_both / "seed1") == before and "taught by" not in out
    assert f"The whole report: {copy_of_both / 'seed1' / 'report.md'}" in out
    assert cascade.main(words_of(data, copy_of_both, "--seed", 2, "--only", "T1")) == 0
    assert (copy_of_both / "seed2" / "T1" / "result.json").exists() and not (copy_of_both / "T1").exists()
    assert (copy_of_both / "results.json").read_text() == pooled


def test_what_does_not_belong_together_is_refused(copy, copy_of_both, data, capfd):
    before = snapshot(copy)
    assert "a run of one seed that is none of 3, 4;" in refusal(capfd, words_of(data, copy, "--seed", 3, "--seeds", 2))
    settings = "holds a run with other settings (epochs=2)"
    assert settings in refusal(capfd, words_of(data, copy, "--seeds", 2, "epochs=3"))
    assert snapshot(copy) == before and not list(copy.glob("seed*"))
    assert settings in refusal(capfd, words_of(data, copy_of_both, "--seeds", 2, "epochs=3"))
    path = copy_of_both / "seed1" / "vocabulary.json"
    untrain(copy_of_both / "seed1", *MODELS)
    assert cascade.main(words_of(data, copy.parent / "v", "--only", "B2", "vocab_size=9")) == 0
    shutil.copy(copy.parent / "v" / "vocabulary.json", path)
    sentence = refusal(capfd, words_of(data, copy_of_both, "--seeds", 2))
    assert f"{path} is another vocabulary than that of the other seeds" in sentence
    for count in (0, -1, 101):
        assert "--seeds must be from 1 to 100" in refusal(capfd, words_of(data, copy, "--seeds", count))


def test_a_seed_that_diverged_goes_on_beside_one_that_is_finished(copy_of_both, data, capfd):
    untrain(copy_of_both / "seed1", "B2")
    before = snapshot(copy_of_both / "seed0")
    assert "(peak_rate=0.002)" in refusal(capfd, words_of(data, copy_of_both, "--seed", 0, "peak_rate=0.001"))
    assert cascade.main(words_of(data, copy_of_both, "--seeds", 2, "peak_rate=0.001")) == 0
    assert "peak_rate falls from 0.002 to 0.001 for B2 of seed 1\n" in capfd.readouterr().out
    after = snapshot(copy_of_both / "seed0")
    changed = {os.path.basename(path) for path in after if after[path] != before[path]}
    assert changed <= {"config.json"}
    rates = {m["name"]: m["peak_rates"] for m in results_of(copy_of_both / "seed1")["models"]}
    assert rates["B2"] == [[1, 0.001]] and rates["S3"] == [[1, 0.002]]
    assert cascade.main(words_of(data, copy_of_both, "--seeds", 2, "peak_rate=0.001")) == 0  # and again


# --- pooled ---------------------------------------------------------------------------------------


def test_pooled_numbers_are_those_of_the_decoded_texts(grown, data):
    pooled = json.loads((grown / "results.json").read_text())
    runs = [json.loads((grown / seed / "results.json").read_text()) for seed in ("seed0", "seed1")]
    assert pooled["seeds"] == [0, 1] and pooled["runs"] == runs and "--seeds 2" in pooled["command"]
    assert pooled["seconds"] == pytest.approx(sum(run["seconds"] for run in runs), abs=0.11)
    for key in ("scale", "data", "test_sets", "settings", "experiments"):
        assert pooled[key] == runs[0][key]
    scores = {}
    for s in pooled["test_sets"]:
        references = {u.id: u.text for u in read_part(data / s)[0]}
        for name in MODELS:
            scores[name, s] = [
                wer.score(references, read_transcript(grown / seed / name / f"{s}.txt")) for seed in ("seed0", "seed1")
            ]
    assert [m["name"] for m in pooled["models"]] == list(MODELS)
    for m in pooled["models"]:
        for s in pooled["test_sets"]:
            of = scores[m["name"], s]
            edits = sum(score.edits.sum(axis=0) for score in of)
            assert m["edits"][s] == edits.tolist() and m["seeds"] == [0, 1]
            assert m["wer"][s] == pytest.approx(edits.sum() / sum(score.words.sum() for score in of), abs=1e-12)
            assert m["ser"][s] == pytest.approx(np.concatenate([score.wrong for score in of]).mean(), abs=1e-12)
            assert m["wer_ci95"][s] == list(wer.bootstrap_interval(of))
            assert m["ser_ci95"][s] == list(wer.bootstrap_interval(of, "ser"))
    tested = {(t["a"], t["b"], t["set"]): t for t in pooled["paired"]}
    assert {("S3", "B2"), ("S2", "B2"), ("S3", "S2"), ("S1", "B1"), ("B2", "T1")} <= {key[:2] for key in tested}
    for (a, b, s), t in tested.items():
        test = wer.paired_test(scores[a, s], scores[b, s])
        assert (t["difference"], t["low"], t["high"], t["p"]) == test[:4] and t["relative"] == list(test.relative)
        each = [one.wer - other.wer for one, other in zip(scores[a, s], scores[b, s], strict=True)]
        assert t["differences"] == {"0": each[0], "1": each[1]}


def test_speakers_of_a_seed(grown, data):
    (speaker,) = [s for s in results_of(grown / "seed0")["speakers"] if s["set"] == "test-other"]
    model = {m["name"]: m for m in results_of(grown / "seed0")["models"]}
    assert speaker["speaker"] == "4"  # of the chirps only one speaks in each part: his rate is that of the set
    assert speaker["words"] == sum(len(u.text.split()) for u in read_part(data / "test-other")[0])
    assert speaker["wer"] == {name: model[name]["wer"]["test-other"] for name in MODELS}


def test_the_report_is_pooled(grown, capsys):
    text = (grown / "report.md").read_text()
    assert "mean over 2 seeds (0, 1)" in text and "zero when seeds and utterances are resampled" in text
    runs = read_runs([grown])
    assert runs.seeds == [0, 1] and runs.pooled["paired"]
    t = next(t for t in runs.pooled["paired"] if (t["a"], t["b"], t["set"]) == ("S1", "B1", "test-clean"))
    sentence = re.search(r"- S1 .* B1 on test-clean: .*", text)[0]
    each = ", ".join(f"{100 * d:+.1f}" for d in t["differences"].values())
    assert sentence.endswith(f"[{100 * t['low']:+.1f}, {100 * t['high']:+.1f}], p = {t['p']:.4f}; seeds {each}.")
    assert "Not there yet" not in text and "## What a teacher is worth" in text
    assert report.main([str(grown)]) == 0
    assert (grown / "report.md").read_text() == text
    assert "range of the seeds 0, 1." in capsys.readouterr().out
    for seed in ("seed0", "seed1"):
        assert f"seed {seed[-1]}; `python -m mini_pkd.cascade" in (grown / seed / "report.md").read_text()
    assert report.main([str(grown / "seed0"), str(grown / "seed1"), "--out", str(grown.parent / "voted")]) == 0
    assert "in the majority of the seeds" in (grown.parent / "voted" / "report.md").read_text()


def test_seeds_that_have_not_got_as_far(copy_of_both, data):
    """Seed 1 lacks S3 and B2: their numbers are those of seed 0, and the file says so."""
    untrain(copy_of_both / "seed1", "S3", "B2")
    assert cascade.main(words_of(data, copy_of_both, "--seeds", 2, "--only", "T1")) == 0
    pooled = json.loads((copy_of_both / "results.json").read_text())
    seeds = {m["name"]: m["seeds"] for m in pooled["models"]}
    assert seeds == dict.fromkeys(MODELS, [0, 1]) | {"S3": [0], "B2": [0]}
    t = next(t for t in pooled["paired"] if (t["a"], t["b"], t["set"]) == ("S3", "S2", "test-other"))
    assert list(t["differences"]) == ["0"]
    assert "Not there yet" not in (copy_of_both / "report.md").read_text()


def test_only_some_models_of_each_seed_then_another_seed_in_another_sitting(data, finished, monkeypatch, capfd):
    out, trained, real = finished.parent / "sittings", [], cascade.train
    with monkeypatch.context() as patch:
        patch.setattr(cascade, "train", lambda *a: trained.append((a[6], a[7])) or real(*a))
        assert cascade.main(words_of(data, out, "--seeds", 2, "--only", "B2")) == 0
    assert trained == [(0, "B2"), (1, "B2")]  # batches, masks and dropout have the seed as well
    shown = capfd.readouterr()
    assert "B2 of seed 0: " in shown.out and "B2 of seed 1: " in shown.out
    assert shown.out.count("compiling the kernels") == 1 and shown.out.count("symbols") == 1
    assert [m["name"] for m in json.loads((out / "results.json").read_text())["models"]] == ["B2"]
    assert "S1 learns from T1, which is not trained yet in " + str(out / "seed0") in refusal(
        capfd, words_of(data, out, "--seeds", 2, "--only", "S1")
    )
    assert cascade.main(words_of(data, out, "--seeds", 3, "--only", "B2")) == 0  # one more
    assert json.loads((out / "results.json").read_text())["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("terminal", [True, False])
def test_one_bar_counts_the_models_of_all_seeds(copy_of_both, data, monkeypatch, terminal):
    for seed in ("seed0", "seed1"):
        for name in ("B1", "B2"):
            (copy_of_both / seed / name / "result.json").unlink()  # to be decoded again, which is fast
    bars, real = [], seed_runs.progress_bar

    def made(*words, **settings):
        bar = real(*words, **settings)
        bars.append((bar, bar.disable))  # a bar that was closed is disabled
        return bar

    monkeypatch.setattr(seed_runs, "progress_bar", made)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert cascade.main(words_of(data, copy_of_both, "--seeds", 2)) == 0
    ((bar, disabled),) = bars
    assert bar.total == 4 and disabled != terminal
    if terminal:
        assert bar.n == 4 and bar.desc.startswith("4 models")


def test_dry_run_of_several_seeds(data, tmp_path, capfd):
    times = {}
    for seeds in (1, 3):
        assert cascade.main(words_of(data, tmp_path / "run", "--dry-run", "--seeds", seeds)) == 0
        times[seeds] = next(line for line in capfd.readouterr().out.splitlines() if line.startswith("Time in all"))
    assert "each model with 3 seeds" in times[3] and "seeds" not in times[1]
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_seeds(capsys):
    assert cascade.main(["--help"]) == 0
    assert "--seeds K" in capsys.readouterr().out
    assert "--seeds" not in " ".join(SETTINGS)
