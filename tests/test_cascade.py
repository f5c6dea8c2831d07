"""The whole command on a corpus of chirps: end to end, side by side, killed, interrupted, and every bad input."""

import contextlib
import errno
import io
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mini_pkd import UserError, cascade, checkpoint, estimate, report, train, warm_up, wer
from mini_pkd.corpus_folder import read_part
from mini_pkd.feature_store import FeatureStore
from mini_pkd.lock import only_process
from mini_pkd.model_file import load_model
from mini_pkd.scales import TINY, count_parameters
from mini_pkd.transcript_file import read_transcript

MODELS = {"T1": None, "S1": "T1", "B1": None, "S2": "T1", "S3": "S1", "B2": None}  # name: teacher
PARTS = {"train": 12, "dev": 4, "test-clean": 4, "test-other": 3}
WORDS = {"AB": (400, 900), "BA": (900, 400), "CAB": (1500, 600), "ABBA": (500, 2200)}  # each its two tones, in Hz
SIZE = {"blocks": 3, "heads": 2, "window": 6, "kernel": 3, "expansion": 1, "joint_width": 8, "lstm_width": 6}
SETTINGS = [
    "epochs=2", "dev_every=1", "vocab_size=8", "batch_utterances=5", "warmup_steps=2", "beam=2",
    "checkpoint_minutes=1e-9",  # the state is saved after every step, so that a kill finds one
    *(f"{name}.{key}={value}" for name in TINY.sizes for key, value in SIZE.items()),
    "T1.width=16", "79.width=12", "61.width=8",
]  # fmt: skip


def chirp(word, rng):
    seconds = rng.uniform(0.15, 0.25)
    t = np.arange(int(16000 * seconds)) / 16000
    low, high = WORDS[word]
    frequency = np.where(t < seconds / 2, low, high) * rng.uniform(0.97, 1.03)
    return np.sin(2 * np.pi * np.cumsum(frequency) / 16000) * np.hanning(len(t)) * 0.3


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A corpus in LibriSpeech's layout, each utterance two or three words."""
    root, rng = tmp_path_factory.mktemp("corpus") / "chirps", np.random.default_rng(0)
    for speaker, (part, count) in enumerate(PARTS.items(), start=1):
        folder, lines = root / part / str(speaker) / "1", []
        folder.mkdir(parents=True)
        for n in range(count):
            words = rng.choice(list(WORDS), size=2 + n % 2).tolist()
            samples = np.concatenate([chirp(word, rng) for word in words])
            noisy = samples + 0.003 * rng.standard_normal(len(samples))
            soundfile.write(folder / f"{speaker}-1-{n:04d}.wav", noisy.astype(np.float32), 16000)
            lines.append(f"{speaker}-1-{n:04d} {' '.join(words)}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return root


def words_of(data, out, *more, settings=SETTINGS):
    return [*settings, "--data", str(data), "--out", str(out), "--jobs", "1", *map(str, more)]  # a later --jobs wins


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    """The folder of an undisturbed run, one model after the other, one thread.  Tests work on copies."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert cascade.main(words_of(data, out, "--jobs", 1)) == 0
    return out


@pytest.fixture
def copy(finished, request):
    """A copy of it beside it (features are shared there), to be damaged."""
    out = finished.parent / f"copy{abs(hash(request.node.name))}"
    shutil.copytree(finished, out)
    yield out
    shutil.rmtree(out)


def untrain(out, *names):
    for name in names:
        shutil.rmtree(out / name)


def results_of(out):
    """All that results.json holds, of which the report must be able to read its part."""
    report.read_results(out)
    return json.loads((out / "results.json").read_text())


def snapshot(out):
    """Everything there, and when it was written; the lock, the results and the report may be written anew."""
    files = [p for name in MODELS for p in (out / name).glob("*") if p.is_file()]
    files += [out / "config.json", out / "vocabulary.json"]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def weights(out):
    """{model: its weights to the bit}"""
    found = {}
    for name in MODELS:
        arrays, _ = checkpoint.load(out / name / "model.npz")
        found[name] = {key: array.tobytes() for key, array in arrays.items()}
    return found


def refusal(capfd, words):
    """The one sentence of a command that must fail."""
    capfd.readouterr()
    status = cascade.main([str(word) for word in words])
    out, err = capfd.readouterr()
    assert status in (1, 2) and "Traceback" not in err + out, err
    sentences = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("cascade: ")]
    others = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "|" not in line]  # no bars
    assert len(sentences) == 1 and others == sentences, err
    return sentences[0]


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_every_model_has_its_files(finished):
    assert sorted(p.name for p in finished.iterdir() if p.is_dir() and p.name != "figures") == sorted(MODELS)
    for name in MODELS:
        names = {p.name for p in (finished / name).iterdir()}
        assert names == {"model.npz", "log.csv", "result.json", "test-clean.txt", "test-other.txt"}, name
        log = (finished / name / "log.csv").read_text().splitlines()
        assert len(log) == 1 + 2 and log[0].startswith("epoch,step,updates,loss,rnnt,kl")
        kl = [float(line.split(",")[5]) for line in log[1:]]
        assert all(k > 0 for k in kl) if MODELS[name] else kl == [0, 0]
        loaded, _, bpe, about = load_model(finished / name / "model.npz")
        assert about["name"] == name and about["teacher"] == MODELS[name] and bpe.size == 8
        assert all(np.isfinite(p.data).all() for p in loaded.named_parameters().values())
    assert not list(finished.rglob("*.tmp"))
    config = json.loads((finished / "config.json").read_text())
    assert config["seed"] == 0 and config["data"] == "chirps" and config["settings"]["epochs"] == 2
    assert config["sizes"]["79"]["width"] == 12


def test_results_hold_what_the_tables_need(finished, data):
    results = results_of(finished)
    assert (results["scale"], results["seed"], results["data"]) == ("tiny", 0, "chirps")
    assert results["command"].startswith("python -m mini_pkd.cascade epochs=2 ") and "cores" in results["machine"]
    assert results["test_sets"] == ["test-clean", "test-other"]
    models = {m["name"]: m for m in results["models"]}
    assert {name: m["teacher"] for name, m in models.items()} == MODELS
    plans = {plan.name: plan for plan in TINY.models()}
    scale = TINY.override(SETTINGS)
    for name, m in models.items():
        assert (m["role"], m["size"], m["stage"]) == (plans[name].role, plans[name].size, plans[name].stage)
        assert m["params"] == count_parameters(scale.sizes[m["size"]].config(8))
        assert m["compression"] == pytest.approx(1 - m["params"] / models["T1"]["params"], abs=1e-12)
        assert m["updates"] == 2 * 3 and m["skipped_updates"] == 0 and m["seconds"] >= 0  # 12 utterances by 5
        assert np.isfinite(m["best_dev_loss"]) and m["best_dev_wer"] >= 0
        for part in results["test_sets"]:
            references = {u.id: u.text for u in read_part(data / part)[0]}
            hypotheses = read_transcript(finished / name / f"{part}.txt")
            score = wer.score(references, hypotheses)
            assert m["wer"][part] == score.wer and m["ser"][part] == score.ser
            low, high = m["wer_ci95"][part]
            assert low <= m["wer"][part] <= high
            total = sum(len(text.split()) for text in references.values())
            assert sum(m["edits"][part]) / total == pytest.approx(m["wer"][part])
    assert {m["params"] for m in models.values()} == {models[n]["params"] for n in ("T1", "S1", "S2")}
    pairs = {(p["a"], p["b"]) for p in results["paired"]}
    assert {("S3", "B2"), ("S2", "B2"), ("S3", "S2"), ("S1", "B1"), ("S3", "T1")} <= pairs
    assert all(p["low"] <= p["difference"] <= p["high"] and 0 <= p["p"] <= 1 for p in results["paired"])
    assert [rung["student"] for rung in results["ladder"]] == ["S1", "S2"]


def test_a_report_is_written(finished):
    text = (finished / "report.md").read_text()
    assert "Table 1" in text and "Table 2" in text and "Not there yet" not in text
    assert all(name in text for name in MODELS)


def test_finished_models_are_not_touched(copy, data, capfd):
    before = snapshot(copy)
    for more in ([], ["--only", "S3"]):
        assert cascade.main(words_of(data, copy, *more)) == 0
    assert snapshot(copy) == before
    out = capfd.readouterr().out
    assert "test-clean" in out and "taught by" not in out  # the table, but no training


def test_one_model_again_gives_the_same_bits(copy, data, finished):
    before = snapshot(copy)
    untrain(copy, "S3")
    assert cascade.main(words_of(data, copy, "--only", "S3")) == 0
    assert weights(copy) == weights(finished)
    after = snapshot(copy)
    assert {path for path in after if after[path] != before[path]} <= {p for p in after if "/S3/" in p}


def test_trained_but_killed_before_the_score(copy, data, finished):
    before = (copy / "S2" / "model.npz").stat().st_mtime_ns
    (copy / "S2" / "result.json").unlink()
    (copy / "S2" / "test-other.txt").unlink()
    assert cascade.main(words_of(data, copy)) == 0
    assert (copy / "S2" / "model.npz").stat().st_mtime_ns == before
    old, new = (json.loads((out / "S2" / "result.json").read_text()) for out in (finished, copy))
    assert old | {"decoding_seconds": 0} == new | {"decoding_seconds": 0}


def test_results_and_report_are_written_anew_when_damaged(copy, data, finished):
    (copy / "results.json").write_text("{")
    (copy / "report.md").unlink()
    assert cascade.main(words_of(data, copy)) == 0
    old, new = (results_of(out) for out in (finished, copy))
    assert old["models"] == new["models"] and old["paired"] == new["paired"] and (copy / "report.md").exists()


def test_another_seed_gives_other_weights(data, finished):
    out = finished.parent / "seed1"
    assert cascade.main(words_of(data, out, "--seed", 1, "--only", "B2")) == 0
    a, b = (checkpoint.load(folder / "B2" / "model.npz")[0] for folder in (out, finished))
    assert not np.array_equal(a["weights/encoder.input.weight"], b["weights/encoder.input.weight"])
    assert [m["name"] for m in results_of(out)["models"]] == ["B2"]


@pytest.mark.slow
def test_side_by_side_gives_the_same_bits(data, finished, monkeypatch, capfd):
    monkeypatch.setattr(cascade, "usable_cores", lambda: 2)  # one thread for each of two processes
    out = finished.parent / "side-by-side"
    assert cascade.main(words_of(data, out, "--jobs", 2)) == 0
    assert weights(out) == weights(finished)
    old, new = (results_of(folder)["models"] for folder in (finished, out))
    timeless = {"seconds": 0, "decoding_seconds": 0}
    assert [m | timeless for m in old] == [m | timeless for m in new]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("left", [["B2"], ["B2", "S2"]])
def test_the_last_model_has_no_more_threads_than_the_others_had(copy, data, monkeypatch, capfd, left):
    """BLAS may round differently with another number, and a resumed run must end in the same bits."""
    started = []

    class Process:
        stdin, returncode = io.BytesIO(), 1

        def __init__(self, words, env, **_):
            started.append((words[words.index("--only") + 1], env["OPENBLAS_NUM_THREADS"], env["NUMBA_NUM_THREADS"]))

        def poll(self):
            return 1

    untrain(copy, *left)
    monkeypatch.setattr(cascade, "usable_cores", lambda: 6)
    monkeypatch.setattr(cascade.subprocess, "Popen", Process)
    assert "ended early" in refusal(capfd, words_of(data, copy, "--jobs", 3))
    assert sorted(started) == [(name, "2", "2") for name in left]


# --- stopped ---------------------------------------------------------------------------------------------------------


def start(words, **options):
    threads = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mini_pkd.cascade", *words], env=os.environ | threads, cwd=cascade.REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
    )  # fmt: skip


def wait_for(path, process, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate(timeout=5)[0]
        time.sleep(0.01)


def children(pid):
    """Processes that were started by this one, on Linux."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]
    return []


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("jobs, where", [(1, "S1/training.npz"), (2, "B1/training.npz")])
def test_killed_it_continues_to_the_same_bits(data, finished, jobs, where):
    out = finished.parent / f"killed-{jobs}"
    process = start(words_of(data, out, "--jobs", jobs))
    try:
        wait_for(out / where, process)
        offspring = children(process.pid)
    finally:
        process.kill()
        process.communicate()
    end = time.monotonic() + 10
    while any(map(alive, offspring)):  # nobody may go on training what the next command trains
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not all((out / name / "result.json").exists() for name in MODELS)
    done = {p: p.stat().st_mtime_ns for p in out.glob("*/model.npz")}
    assert cascade.main(words_of(data, out, "--jobs", 1)) == 0
    assert weights(out) == weights(finished)
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_a_process_of_one_model_does_not_outlive_its_parent(data, finished):
    """An orphan would train what the next command trains too.  These 4000 epochs would take minutes."""
    out = finished.parent / "orphan"
    words = words_of(data, out, "--only", "B2", "--slot", 0, settings=[*SETTINGS, "epochs=4000"])
    process = start(words, stdin=subprocess.PIPE)
    try:
        wait_for(out / "B2" / "training.npz", process)
        process.stdin.close()  # what the death of the parent does, whatever it died of
        assert process.wait(timeout=5) == 1
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number, jobs", [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_asked_to_stop_it_saves_and_exits_130(data, finished, number, jobs):
    out = finished.parent / f"stopped-{jobs}"
    process = start(words_of(data, out, "--jobs", jobs))
    try:
        wait_for(out / "T1" / "training.npz", process)
        process.send_signal(number)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in text
    assert text.count("the same command continues") == 1
    assert not (out / "B2" / "result.json").exists()
    assert cascade.main(words_of(data, out, "--jobs", 1)) == 0
    assert weights(out) == weights(finished)


def imports(process):
    """Whether it has come as far as the package, which imports numpy early (Linux; elsewhere it surely had time)."""
    if sys.platform != "linux":
        time.sleep(0.5)
        return True
    with open(f"/proc/{process.pid}/maps") as file:
        return "numpy" in file.read()


def trains(process):
    """Whether processes that train one model each were started."""
    with contextlib.suppress(OSError):  # one has just ended
        return any("--slot" in open(f"/proc/{pid}/cmdline").read() for pid in children(process.pid))


@pytest.mark.slow
@pytest.mark.parametrize("stage, delays", [(imports, (0, 0.2, 0.7, 1.5, 3)), (trains, (0, 0.2, 0.7, 1.5, 3))])
def test_ctrl_c_at_any_time_prints_no_traceback(data, finished, stage, delays):
    """A terminal sends it to the whole process group: the command, its warm-up and the processes of its models."""
    if stage is trains and sys.platform != "linux":
        pytest.skip("asks /proc for children")
    words = words_of(data, finished.parent / "ctrl-c", "--jobs", 2, settings=[*SETTINGS, "epochs=4000"])
    for delay in delays:
        process = start(words, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            end = time.monotonic() + 120
            while not stage(process):
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.01)
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            text = process.communicate(timeout=60)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 130 and "Traceback" not in text and "Error" not in text, (delay, text)


def test_processes_start_with_ctrl_c_blocked(copy, data, monkeypatch, capfd):
    """From before their first instruction: even a starting interpreter prints a traceback."""
    blocked = []

    class Process:
        stdin, returncode = io.BytesIO(), 1

        def __init__(self, words, **_):
            blocked.append((words[2], signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())))

        def poll(self):
            return 1

        wait = kill = poll

    untrain(copy, "B2")
    monkeypatch.setattr(warm_up, "_done", False)
    monkeypatch.setattr(subprocess, "Popen", Process)
    assert "B2 ended early" in refusal(capfd, words_of(data, copy, "--jobs", 2))
    assert blocked == [("mini_pkd.warm_up", True), ("mini_pkd.cascade", True)]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.mark.slow
def test_ctrl_c_while_worker_processes_start(data, finished, tmp_path):
    """... of the feature store, which import what they need."""
    script = """
import sys
from pathlib import Path
from mini_pkd import feature_workers
if __name__ == "__main__":
    sys.stdout.write("ready"), sys.stdout.flush()
    feature_workers.SMALL_PART = 0
    paths = [str(p) for p in Path(sys.argv[1]).rglob("*.wav")] * 100
    try:
        for _ in feature_workers.extract_all(paths, 2):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
"""
    (tmp_path / "script.py").write_text(script)
    for delay in (0.05, 0.2, 0.5, 1):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", data], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            assert process.stdout.read(5) == "ready"
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGINT)
            err = process.communicate(timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 130 and "Traceback" not in err, (delay, err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_features_are_made(data, tmp_path, monkeypatch, capfd, number):
    before = signal.getsignal(signal.SIGTERM)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` starts us with it ignored
    monkeypatch.setattr(FeatureStore, "build", lambda *_, **__: os.kill(os.getpid(), number) or time.sleep(5))
    try:
        assert cascade.main(words_of(data, tmp_path / "run")) == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert "the same command continues" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


# --- refused: the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--scale", "tyni"], "there is no scale 'tyni'; the nearest known name is 'tiny'"),
        (["epoch=3"], "the nearest known name is 'epochs'"),
        (["epochs"], "'epochs' is not of the form name=value"),
        (["epochs=few"], "epochs wants a whole number"),
        (["epochs=0"], "epochs must be at least 1"),
        (["batch_utterances=0"], "batch_utterances must be at least 1"),
        (["alpha=-1"], "alpha must be a finite number of at least 0"),
        (["mixing=convex", "alpha=1.5"], "alpha must be at most 1 with mixing=convex"),
        (["dropout=2"], "dropout must be below 1"),
        (["beam=0"], "beam must be at least 1"),
        (["temperature=0"], "temperature must be above 0"),
        (["peak_rate=0"], "peak_rate must be above 0"),
        (["max_time_fraction=1.5"], "max_time_fraction must be at most 1"),
        (["max_frames=5000", "batch_frames=4000"], "raise batch_frames or lower max_frames"),
        (["T1.width=90", "T1.heads=4"], "T1: encoder width 90 is not a multiple of its 4 heads"),
        (["61.blocks=2"], "61: 2 encoder blocks cannot hold 3 time reductions"),
        (["T9.width=8"], "there is no model size 'T9'"),
        (["--only", "X1"], "there is no model 'X1' in tiny: it has T1, S1"),
        (["--only", "epochs=2"], "--only wants the name of a model"),
        (["--only", "S1"], "S1 learns from T1, which is not trained yet"),
        (["--only", "T1", "S3"], "S3 learns from S1, which is not trained yet"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--jobs", "2", "T1.width=100000"], "2 trainings at a time need about "),
        (["--jobs", "1", "T1.width=100000"], "the largest training needs about "),
        (["--memory", "0.1"], "GB of memory and 0.1 GB are free: choose smaller sizes, a smaller batch_frames"),
        (["--memory", "0"], "--memory must be above 0"),
        (["--memory", "nan"], "--memory must be above 0"),
        (["beam=257"], "beam must be at most 256"),
        (["--jobs", "two"], "invalid int value: 'two'"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "1.5"], "invalid int value: '1.5'"),
        (["--sede", "1"], "unrecognized arguments: --sede"),
        (["--data"], "expected one argument"),
    ],
)
def test_refused_before_anything_is_written(data, tmp_path, capfd, words, sentence):
    first = [] if "--data" in words else ["--data", data, "--out", tmp_path / "run"]
    assert sentence in refusal(capfd, [*first, *words])
    assert list(tmp_path.iterdir()) == []


# --- refused: the data -----------------------------------------------------------------------------------------------


def test_refused_data_folders(data, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    shutil.copytree(data / "train", tmp_path / "no-dev" / "train")
    (tmp_path / "hollow" / "train").mkdir(parents=True)
    (tmp_path / "hollow" / "dev").mkdir()
    (tmp_path / "file").write_text("")
    for name, sentence in {
        "nowhere": "does not exist",
        "file": "is not a folder",
        "empty": "it holds no folders at all",
        "no-dev": "has no part for dev",
        "hollow": "no utterance was found in",
    }.items():
        assert sentence in refusal(capfd, words_of(tmp_path / name, tmp_path / "run"))
        assert not (tmp_path / "run" / "config.json").exists(), name


def test_a_vocabulary_that_is_too_small_claims_no_folder(data, finished, capfd):
    out = finished.parent / "small-vocabulary"
    assert "a vocabulary of 4 is too small" in refusal(capfd, words_of(data, out, "vocab_size=4"))
    assert not (out / "config.json").exists()
    assert cascade.main(words_of(data, out, "--only", "B2")) == 0  # the right one is welcome there


def test_bad_utterances_are_listed_unless_strict(data, tmp_path, capfd):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    (broken / "train" / "1" / "1" / "1-1-0003.wav").write_bytes(b"no audio")
    assert "1-1-0003" in refusal(capfd, words_of(broken, tmp_path / "strict" / "run", "--strict"))
    assert cascade.main(words_of(broken, tmp_path / "run", "--only", "B2")) == 0
    listed = (tmp_path / "run" / "skipped.txt").read_text().splitlines()
    assert len(listed) == 1 and "1-1-0003" in listed[0]
    for path in (broken / "train").rglob("*.wav"):
        path.write_bytes(b"")
    assert "none of the 12 utterances could be read" in refusal(capfd, words_of(broken, tmp_path / "silent" / "run"))


def test_transcripts_that_the_vocabulary_cannot_write(data, tmp_path, capfd):
    """Train and dev leave such an utterance out and say which; a test set keeps it, its words count as errors."""
    odd = tmp_path / "odd"
    shutil.copytree(data, odd)
    for part, speaker, line, word in (
        ("train", 1, 3, "\u2581AB"), ("dev", 2, 1, "R2D2"), ("test-clean", 3, 2, "CAFÉ"), ("test-other", 4, 0, "7")
    ):  # fmt: skip
        path = odd / part / str(speaker) / "1" / f"{speaker}-1.trans.txt"
        lines = path.read_text().splitlines()
        lines[line] = f"{speaker}-1-{line:04d} {word}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "run"
    assert cascade.main(words_of(odd, out, "--only", "B2")) == 0
    listed = (out / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 2
    assert listed[0].startswith("train 1-1-0003: the vocabulary does not know the character '\u2581'")
    assert listed[1].startswith("dev 2-1-0001: the vocabulary does not know the characters '2', 'D', 'R' in 'R2D2'")
    for part, odd_word in (("test-clean", "CAFÉ"), ("test-other", "7")):
        hypotheses = read_transcript(out / "B2" / f"{part}.txt")
        references = {u.id: u.text for u in read_part(odd / part)[0]}
        assert len(hypotheses) == PARTS[part] and odd_word in references.values()
        result = json.loads((out / "B2" / "result.json").read_text())
        score = wer.score(references, hypotheses)
        assert result["wer"][part] == score.wer and len(score.ids) == PARTS[part]
    assert "utterance 1-1-0003: the vocabulary" in refusal(capfd, words_of(odd, out, "--only", "T1", "--strict"))


def test_names_that_are_not_utf8(data, tmp_path, capfd):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        shutil.copytree(data, odd)
    except OSError:
        pytest.skip("this disk takes names in UTF-8 only")
    for old in (odd / "dev" / "2" / "1", odd / "train" / "1"):
        old.rename(Path(os.fsdecode(os.fsencode(old) + b"\xff")))
    (odd / "train" / "1\udcff" / "1" / "1-1-0003.wav").write_bytes(b"no audio")
    assert cascade.main(words_of(odd, tmp_path / "run", "--only", "B2")) == 0
    listed = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 1 and listed[0].startswith("train 1-1-0003: ") and "1\\udcff/1/1-1-0003.wav" in listed[0]
    assert json.loads((tmp_path / "run" / "results.json").read_text())["data"] == "caf\\udce9"


def test_data_paths_that_cannot_be(tmp_path, capfd):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is not a folder" in refusal(capfd, words_of(tmp_path / "loop", tmp_path / "run"))
    assert "does not exist" in refusal(capfd, words_of(tmp_path / ("x" * 300), tmp_path / "run"))
    assert "too long" in refusal(capfd, words_of(tmp_path, tmp_path / ("x" * 300))).lower()


def test_two_feature_types_have_two_places(data, tmp_path):
    runs = [cascade.Cascade(TINY.override([f"feature_type={t}"]), data, tmp_path / t) for t in ("float16", "float32")]
    assert len({run.features(role) for run in runs for role in PARTS}) == 2 * len(PARTS)
    assert runs[0].features("dev") == cascade.Cascade(runs[0].scale, data, tmp_path / "seed1").features("dev")


# --- refused: the run's folder ---------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be(data, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        assert "cannot be made" in refusal(capfd, words_of(data, out))
    (tmp_path / "features").write_text("where the features should go")
    assert "cannot be used" in refusal(capfd, words_of(data, tmp_path / "run"))


@pytest.mark.parametrize(
    "more, key",
    [(["epochs=3"], "(epochs=2)"), (["T1.width=32"], "(T1.width=16)"), (["--seed", "5"], "(seed=0)"),
     (["peak_rate=0.1"], "(peak_rate=0.003)"), (["peak_rate=0.001"], "(peak_rate=0.003)"),  # nothing is left to train
     (["max_symbols=3"], "(max_symbols=12)"), (["--scale", "small"], "(name='tiny', ")],
)  # fmt: skip
def test_a_folder_of_other_settings(copy, data, capfd, more, key):
    before = snapshot(copy)
    settings = [s for s in SETTINGS if s.split(".")[0] in TINY.sizes or "." not in s.split("=")[0]]
    sentence = refusal(capfd, words_of(data, copy, *more, settings=settings))
    assert "holds a run with other settings" in sentence and key in sentence
    assert snapshot(copy) == before


# --- allowed: what may change on the way -----------------------------------------------------------------------------


def test_operational_settings_may_change(copy, data, finished):
    untrain(copy, "B2")
    assert cascade.main(words_of(data, copy, "checkpoint_minutes=7")) == 0
    assert weights(copy) == weights(finished)
    config = json.loads((copy / "config.json").read_text())
    assert config["settings"]["checkpoint_minutes"] == 7
    others = [name for name in MODELS if name != "B2"]
    assert config["history"] == [{"before": {"settings.checkpoint_minutes": 1e-9}, "trained": others}]
    assert json.loads((copy / "results.json").read_text())["settings"]["checkpoint_minutes"] == 7
    assert cascade.main(words_of(data, copy, "checkpoint_minutes=9", "keep_mb=64")) == 0  # of version 0.1
    history = json.loads((copy / "config.json").read_text())["history"]
    assert history[1:] == [{"before": {"settings.checkpoint_minutes": 7}, "trained": list(MODELS)}]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_beam_decodes_everything_again(copy, data, finished, monkeypatch, capfd, jobs):
    """... and trains nothing; killed on the way, with --only, and back again: a table never mixes beams."""
    beams, real, real_score = [], cascade.beam_search, wer.score
    monkeypatch.setattr(cascade, "beam_search", lambda *a: beams.append(a[3]) or real(*a))
    trained = {p: p.stat().st_mtime_ns for p in copy.glob("*/model.npz")}

    def score(*texts):
        if len(beams) == 6:
            raise KeyboardInterrupt
        return real_score(*texts)

    with monkeypatch.context() as patch:  # stopped in the third model, after its second test set
        patch.setattr(cascade.wer, "score", score)
        assert cascade.main(words_of(data, copy, "beam=1")) == 130
    assert [m["name"] for m in report.read_results(copy)["models"]] == ["T1", "S1"]
    assert not (copy / "B1" / "result.json").exists()  # half of its texts are of the new beam
    assert "B2: decoded again, because the beam was another one" in capfd.readouterr().out
    assert cascade.main(words_of(data, copy, "beam=1", "--only", "S3", "--jobs", jobs)) == 0
    results = report.read_results(copy)
    assert results["settings"]["beam"] == 1
    assert {m["name"]: m["beam"] for m in results["models"]} == dict.fromkeys(MODELS, 1)
    for m in results["models"]:
        references = {u.id: u.text for u in read_part(data / "test-other")[0]}
        decoded = read_transcript(copy / m["name"] / "test-other.txt")
        assert m["wer"]["test-other"] == wer.score(references, decoded).wer
    assert set(beams) == {1}
    assert cascade.main(words_of(data, copy)) == 0  # back to beam=2
    old, new = (report.read_results(folder) for folder in (finished, copy))
    timeless = {"decoding_seconds": 0}
    assert [m | timeless for m in old["models"]] == [m | timeless for m in new["models"]]
    assert old["paired"] == new["paired"]
    assert {p: p.stat().st_mtime_ns for p in copy.glob("*/model.npz")} == trained


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_diverges_goes_on_with_a_lower_rate(copy, data, capfd, jobs):
    """The message names the command; what was trained with which rate is written down."""
    untrain(copy, "S3", "B2")
    arrays, meta = checkpoint.load(unfinished_state(copy, data, "B2"))
    checkpoint.save(copy / "B2" / "training.npz", arrays, meta | {"bad_in_a_row": 5})  # as after five bad steps
    command = words_of(data, copy, "--jobs", jobs)
    capfd.readouterr()
    assert cascade.main(command) == 2
    err = capfd.readouterr().err
    advice = f"best weights so far: python -m mini_pkd.cascade {shlex.join(command)} peak_rate=0.0015\n"
    assert "B2 has diverged: at step 1 " in err and advice in err and "Traceback" not in err
    assert (copy / "S3" / "result.json").exists()

    command = shlex.split(err[err.index("-m mini_pkd.cascade ") :].splitlines()[0])[2:]
    assert cascade.main(command) == 0
    assert "peak_rate falls from 0.003 to 0.0015 for B2" in capfd.readouterr().out
    rates = {m["name"]: m["peak_rates"] for m in report.read_results(copy)["models"]}
    assert rates == dict.fromkeys(MODELS, [[1, 0.003]]) | {"B2": [[1, 0.003], [2, 0.0015]]}
    config = json.loads((copy / "config.json").read_text())
    assert config["settings"]["peak_rate"] == 0.0015
    others = [name for name in MODELS if name != "B2"]
    assert config["history"] == [{"before": {"settings.peak_rate": 0.003}, "trained": others}]
    untrain(copy, "B2")
    assert "other settings (peak_rate=0.0015)" in refusal(capfd, words_of(data, copy))  # up again: no


def unfinished_state(out, data, name):
    """The training.npz of a model that was stopped after a step."""
    settings = [word for word in words_of(data, out) if "=" in word]
    run = cascade.Cascade(TINY.override(settings), data, out, progress=False)
    plan = next(plan for plan in run.scale.models() if plan.name == name)
    with pytest.raises(train.Interrupted):
        run._train(plan, run._prepare(), types.SimpleNamespace(raised=True))
    return out / name / "training.npz"


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path):
    checkpoint.save(path, {"x": np.zeros(3)}, {"of": "somebody else"})


@pytest.mark.parametrize("only_jobs", [1, 2])
@pytest.mark.parametrize(
    "name, damage, sentence",
    [
        ("config.json", lambda p: p.write_text("{"), "config.json cannot be read"),
        ("config.json", lambda p: p.write_text("[1]"), "config.json cannot be read"),
        ("config.json", lambda p: p.write_bytes(b"\xff\xfe"), "config.json cannot be read"),
        ("vocabulary.json", cut, "vocabulary.json is not a mini_pkd vocabulary, or cut short"),
        ("T1/result.json", cut, "result.json is damaged: delete it, and the same command scores T1 again"),
        ("T1/result.json", lambda p: p.write_text("{}"), "result.json is damaged"),
        ("T1/result.json", lambda p: p.write_text("[]"), "result.json is damaged"),
        ("T1/model.npz", cut, "T1/model.npz is damaged or cut short"),
        ("T1/model.npz", foreign, "is a mini_pkd file but not a model"),
        ("T1/model.npz", lambda p: shutil.copy(p.parent.parent / "B2" / "model.npz", p), "is not the T1 of this run"),
        ("T1/model.npz", lambda p: p.unlink() or p.mkdir(), "model.npz could not be opened"),
        ("S1/training.npz", lambda p: p.write_bytes(b"PK"), "training.npz is damaged or cut short"),
    ],
)
def test_damaged_files_stop_it_before_any_work(copy, data, capfd, name, damage, sentence, only_jobs):
    untrain(copy, "S1", "S2")
    (copy / "S1").mkdir()
    damage(copy / name)
    before = snapshot(copy)
    assert sentence in refusal(capfd, words_of(data, copy, "--jobs", only_jobs))
    assert snapshot(copy) == before


STRANGE = (None, True, -1, 0, 2.5, 1e308, 10**30, math.nan, math.inf, "", "x\n", "\ud800", [], {}, [[]], {"": {}})


def mutate(value, rng):
    """A JSON value with one thing changed somewhere inside."""
    if isinstance(value, list | dict) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, value = keys[rng.integers(len(keys))], value.copy()
        if rng.random() < 0.2:
            del value[key]
        else:
            value[key] = mutate(value[key], rng)
        return value
    choices = [*STRANGE, [value], {"x": value}, str(value)]
    return choices[rng.integers(len(choices))]


@pytest.mark.parametrize("name", ["config.json", "T1/result.json", "S3/result.json"])
def test_json_that_somebody_edited_is_accepted_or_refused(copy, data, name):
    """Whatever stands in the files that a run reads again: one sentence, or success up to the report."""
    path, rng, refused = copy / name, np.random.default_rng(0), 0
    settings = [word for word in words_of(data, copy, *["beam=3"] * (name == "config.json")) if "=" in word]
    run = cascade.Cascade(TINY.override(settings), data, copy, progress=False)  # beam=3: it would be written anew
    good = path.read_text()
    texts = [json.dumps(mutate(json.loads(good), rng)) for _ in range(300)]
    texts += [good[: rng.integers(len(good))] for _ in range(30)]
    texts.append("9" * 5000)
    for depth in (*range(800, 1000, 10), 5000, 100000):  # what can be read cannot always be written
        deep = "[" * depth + "]" * depth
        texts += [deep, *(good.replace("{", f'{{"{key}": {deep}, ', 1) for key in ("new", "history"))]
    for text in texts:
        path.write_text(text)
        try:
            if name == "config.json":
                run._check_config()
            elif run._finished(name[:2]):
                run._write_results()
                report.read_results(copy)
        except UserError as error:
            refused += 1
            assert name in str(error) or "other settings" in str(error), text
            assert "\n" not in str(error), text
    assert refused > 100


@pytest.mark.parametrize("arrays", [{}, {"values": np.zeros(7)}])
def test_a_state_of_something_else(copy, data, capfd, arrays):
    untrain(copy, "B2")
    checkpoint.save(copy / "B2" / "training.npz", arrays, {})
    before = snapshot(copy)
    assert "B2/training.npz" in refusal(capfd, words_of(data, copy))
    assert snapshot(copy) == before


def test_a_full_disk(copy, data, capfd, monkeypatch):
    untrain(copy, "B2")
    before = snapshot(copy)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        assert "the disk is full" in refusal(capfd, words_of(data, copy))
    assert snapshot(copy) == before
    assert cascade.main(words_of(data, copy)) == 0
    untrain(copy, "B2")
    (copy / "B2").write_text("a file where a folder should be")
    assert "cannot be used" in refusal(capfd, words_of(data, copy))


def test_two_commands_in_one_folder(copy, data, capfd):
    pytest.importorskip("fcntl", reason="no locks on this system")
    with only_process(copy, "is training"):
        assert "another process is training in" in refusal(capfd, words_of(data, copy))


@pytest.mark.slow
def test_two_seeds_started_together_share_the_features(data, tmp_path):
    """Both find the store locked, as by a third; one builds it, the other waits and opens it: both finish."""
    features = cascade.Cascade(TINY.override(SETTINGS), data, tmp_path / "run0").features("train")
    features.mkdir(parents=True)
    with only_process(features, "is building"):
        processes = [
            start(words_of(data, tmp_path / f"run{seed}", "--seed", seed, "--only", "B2"))
            for seed in (0, 1)
        ]
        for seed, process in enumerate(processes):
            wait_for(tmp_path / f"run{seed}" / "vocabulary.json", process)
        time.sleep(2)
        assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "features of train, by another process" in out, out
    assert len({(tmp_path / f"run{seed}" / "B2" / "model.npz").read_bytes() for seed in (0, 1)}) == 2
    assert {p.name for p in features.iterdir()} == {"rows.bin", "index.json", "lock"}


@pytest.mark.slow
def test_a_model_that_fails_beside_another(copy, data, capfd):
    untrain(copy, "B1", "B2")
    checkpoint.save(copy / "B2" / "training.npz", {"values": np.zeros(7)}, {})
    assert cascade.main(words_of(data, copy, "--jobs", 2)) == 1
    err = capfd.readouterr().err
    assert "B2/training.npz belongs to a model of another size" in err and "Traceback" not in err
    assert "training of B2 ended early" in err and (copy / "B1" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for children")
def test_a_process_that_is_killed_is_named(data, finished):
    out = finished.parent / "killed-child"
    process = start(words_of(data, out, "--jobs", 2, settings=[*SETTINGS, "epochs=4000"]))
    try:
        for name in ("T1", "B1"):
            wait_for(out / name / "training.npz", process)
        for pid in children(process.pid):
            with open(f"/proc/{pid}/cmdline") as file:
                os.kill(pid, signal.SIGKILL if "--only\0B1" in file.read() else signal.SIGTERM)
        text = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    sentence = text.splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in text and sentence.startswith("mini_pkd: ")
    assert "training of B1 was ended from outside (signal 9, Killed): give the same command again, with" in sentence
    assert "training of T1 was ended from outside (signal 15, Terminated): give the same command again; it" in sentence


# --- --dry-run -------------------------------------------------------------------------------------------------------


def test_dry_run_prints_estimates_and_writes_nothing(data, tmp_path, finished, capfd):
    assert cascade.main(words_of(data, tmp_path / "run", "--dry-run")) == 0
    from_audio = capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    rows = {line.split()[0]: line.split() for line in from_audio.splitlines()}
    assert [rows[name][-1] for name in MODELS] == [teacher or "-" for teacher in MODELS.values()]
    assert float(rows["T1"][1]) == round(json.loads((finished / "T1" / "result.json").read_text())["params"] / 1e6, 3)
    assert all(float(rows[name][3]) > 0 for name in MODELS)
    assert "12 utterances (its audio files)" in from_audio and "estimates" in from_audio and "GFLOP/s" in from_audio

    assert cascade.main(words_of(data, finished, "--dry-run")) == 0
    assert "12 utterances (its feature store)" in capfd.readouterr().out
    assert cascade.main(["--scale", "full", "--dry-run", "--data", str(tmp_path / "LibriSpeech")]) == 0
    assert "960.13 h in 281241 utterances (as in LibriSpeech" in capfd.readouterr().out


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_that_is_free(tmp_path, monkeypatch):
    """The least that anybody grants: the machine, what others leave of it, every control group around us."""
    monkeypatch.setattr(estimate.os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}[name])
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(estimate, "control_groups", lambda controller: [tmp_path / "inner", tmp_path])
    (tmp_path / "inner").mkdir()
    assert estimate.memory_free() == 2**32
    (tmp_path / "meminfo").write_text("MemTotal: 4194304 kB\nMemAvailable:    3000000 kB\n")
    assert estimate.memory_free() == 3000000 * 1024
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "inner" / "memory.max").write_text("max\n")
    assert estimate.memory_free() == 2000000000
    (tmp_path / "inner" / "memory.limit_in_bytes").write_text("1000000000\n")
    assert estimate.memory_free() == 1000000000

    def unknown(name):
        raise ValueError

    monkeypatch.setattr(estimate.os, "sysconf", unknown)
    monkeypatch.setattr(estimate, "MEMINFO", tmp_path / "nowhere")
    monkeypatch.setattr(estimate, "control_groups", lambda controller: [])
    assert estimate.memory_free() is None
    estimate.refuse_what_does_not_fit(TINY.override(["T1.width=100000"]), TINY.models(), 1)  # who knows


def test_memory_needed_is_that_of_the_largest_at_a_time():
    scale = TINY.override(["T1.width=2000"])
    plans = {plan.name: plan for plan in scale.models()}
    largest, students = estimate.memory_needed(scale, [plans["T1"]]), [plans[name] for name in ("S2", "B2", "S3")]
    assert estimate.memory_needed(scale, plans.values()) == largest
    assert largest < estimate.memory_needed(scale, plans.values(), 2) < 2 * largest
    taught, alone, _ = (estimate.memory_needed(scale, [plan]) for plan in students)
    teacher = 4 * count_parameters(scale.sizes["T1"].config(scale.settings.vocab_size))
    assert taught - alone == pytest.approx(teacher)
    assert estimate.memory_needed(scale, [], 2) == 0
    many_frames = TINY.override(["batch_frames=1000000000"])  # says: no limit, and eight utterances are the limit
    assert estimate.memory_needed(many_frames, plans.values()) < 1e9


def test_a_run_that_fits_is_not_refused_and_what_is_trained_needs_nothing(copy, data):
    assert cascade.main(words_of(data, copy, "--memory", 1e-6)) == 0
    assert cascade.main(words_of(data, copy, "--memory", 1e-6, "beam=1")) == 0
    untrain(copy, "B2")
    assert cascade.main(words_of(data, copy, "--memory", 1e-6, "beam=1")) == 2
    assert cascade.main(words_of(data, copy, "--memory", 2, "beam=1")) == 0


def test_dry_run_measures_audio_as_the_store_does(data, finished, tmp_path):
    scale = TINY.override(SETTINGS)
    frames, words, _ = estimate._training_set(cascade.Cascade(scale, data, tmp_path / "run"))
    exact, exact_words, _ = estimate._training_set(cascade.Cascade(scale, data, finished))
    assert np.abs(frames - exact).max() <= 2 and np.array_equal(words, exact_words)
    sampled, some, _ = estimate._training_set(cascade.Cascade(scale, data, tmp_path / "run"), sample=5)
    assert len(sampled) == len(some) == 12 and set(sampled) <= set(frames)
