"""A corpus of chirps, a finished run on it, and what tests of the cascade do with a run."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile

from mini_pkd import cascade, checkpoint, results
from mini_pkd.prepared_corpus import REPOSITORY
from mini_pkd.scales import TINY
from mini_pkd.stop_signal import Interrupted

MODELS = {model.name: model.teacher for model in TINY.models()}
PARTS = {"train": 12, "dev": 4, "test-clean": 4, "test-other": 3}
WORDS = {"AB": (400, 900), "BA": (900, 400), "CAB": (1500, 600), "ABBA": (500, 2200)}  # each its two tones, in Hz
SIZE = {"blocks": 3, "heads": 2, "window": 6, "kernel": 3, "expansion": 1, "joint_width": 8, "lstm_width": 6}
SETTINGS = [
    "epochs=2", "dev_every=1", "vocab_size=8", "batch_utterances=5", "warmup_steps=1", "beam=2",
    "checkpoint_minutes=1e-9",  # the state is saved after every step, so that a kill finds one
    *(f"{name}.{key}={value}" for name in TINY.sizes for key, value in SIZE.items()),
    *(f"{name}.width={width}" for name, width in zip(TINY.sizes, (16, 12, 8, 4), strict=False)),
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
    results.read_results(out)
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


def start(words, **options):
    threads = {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mini_pkd.cascade", *words], env=os.environ | threads, cwd=REPOSITORY,
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


def unfinished_state(out, data, name):
    """The training.npz of a model that was stopped after a step."""
    settings = [word for word in words_of(data, out) if "=" in word]
    run = cascade.Cascade(TINY.override(settings), data, out, progress=False)
    with pytest.raises(Interrupted):
        run.train_model(run.models[name], run.prepare(), types.SimpleNamespace(raised=True))
    return out / name / "training.npz"
