"""The files of a run: whose folder it is, what may change, damage, a full disk, two commands at once."""

import errno
import json
import math
import shutil

import numpy as np
import pytest
from chirps import MODELS, SETTINGS, refusal, snapshot, unfinished_state, untrain, weights, words_of

from mini_pkd import UserError, cascade, checkpoint, results
from mini_pkd.lock import only_process
from mini_pkd.scales import TINY


def test_a_folder_that_cannot_be(data, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        assert "cannot be made" in refusal(capfd, words_of(data, out))
    (tmp_path / "features").write_text("where the features should go")
    assert "cannot be used" in refusal(capfd, words_of(data, tmp_path / "run"))


@pytest.mark.parametrize(
    "more, key",
    [(["epochs=3"], "(epochs=2)"), (["T1.width=32"], "(T1.width=16)"), (["--seed", "5"], "(seed=0)"),
     (["peak_rate=0.1"], "(peak_rate=0.002)"), (["peak_rate=0.001"], "(peak_rate=0.002)"),  # nothing is left to train
     (["max_symbols=3"], "(max_symbols=12)"), (["--scale", "small"], "(name='tiny', ")],
)  # fmt: skip
def test_a_folder_of_other_settings(copy, data, capfd, more, key):
    before = snapshot(copy)
    settings = [s for s in SETTINGS if s.split(".")[0] in TINY.sizes or "." not in s.split("=")[0]]
    sentence = refusal(capfd, words_of(data, copy, *more, settings=settings))
    assert "holds a run with other settings" in sentence and key in sentence
    assert snapshot(copy) == before


def test_operational_settings_may_change(copy, data, finished):
    untrain(copy, "B2")
    assert cascade.main(words_of(data, copy, "checkpoint_minutes=7", "keep_mb=64")) == 0
    assert weights(copy) == weights(finished)
    config = json.loads((copy / "config.json").read_text())
    assert config["settings"]["checkpoint_minutes"] == 7 and config["settings"]["keep_mb"] == 64
    others = [name for name in MODELS if name != "B2"]
    before = {"settings.checkpoint_minutes": 1e-9, "settings.keep_mb": 128}
    assert config["history"] == [{"before": before, "trained": others}]
    assert json.loads((copy / "results.json").read_text())["settings"]["checkpoint_minutes"] == 7
    assert cascade.main(words_of(data, copy, "checkpoint_minutes=9", "keep_mb=64")) == 0
    history = json.loads((copy / "config.json").read_text())["history"]
    assert history[1:] == [{"before": {"settings.checkpoint_minutes": 7}, "trained": list(MODELS)}]


def test_a_folder_from_before_a_setting_existed(copy, data, finished, capfd):
    """It had what is now the default, and goes on with it."""
    path = copy / "config.json"
    config = json.loads(path.read_text())
    del config["settings"]["kl_weighting"]
    path.write_text(json.dumps(config))
    assert "(kl_weighting='nodes')" in refusal(capfd, words_of(data, copy, "kl_weighting=paths"))
    untrain(copy, "B2")
    assert cascade.main(words_of(data, copy)) == 0 and weights(copy) == weights(finished)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign(path):
    checkpoint.save(path, {"x": np.zeros(3)}, {"of": "somebody else"})


@pytest.mark.parametrize("only_jobs", [1, 2])
@pytest.mark.parametrize(
    "name, damage, sentence",
    [
        ("config.json", lambda p: p.write_text("{"), "config.json is truncated or not JSON; choose another --out"),
        ("config.json", lambda p: p.write_text("[1]"), "config.json cannot be used, because the whole is a list"),
        ("config.json", lambda p: p.write_bytes(b"\xff\xfe"), "config.json is truncated or not JSON"),
        ("vocabulary.json", cut, "vocabulary.json is not a mini_pkd vocabulary, or cut short"),
        ("T1/result.json", cut, "truncated or not JSON; delete it, and the same command scores T1 again"),
        ("T1/result.json", lambda p: p.write_text("{}"), "result.json cannot be used, because name is missing"),
        ("T1/result.json", lambda p: p.write_text("[]"), "result.json cannot be used, because the whole is a list"),
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
                run.folder.updated_config()
            elif run.folder.finished(name[:2]):
                run.write_results()
                results.read_results(copy)
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
        assert cascade.main(words_of(data, copy)) == 1
    told = capfd.readouterr().err.replace("\r", "\n").splitlines()
    told = [line for line in told if line.strip() and "|" not in line]
    assert all("the disk is full" in line for line in told) and len(told) == 6 + 2 + 1  # steps, epochs, and the model
    assert [line.partition(":")[0] for line in told] == ["mini_pkd"] * 8 + ["cascade"]
    assert snapshot(copy) == before
    assert cascade.main(words_of(data, copy)) == 0
    untrain(copy, "B2")
    (copy / "B2").write_text("a file where a folder should be")
    assert "cannot be used" in refusal(capfd, words_of(data, copy))


def test_a_state_is_read_once_at_a_restart(copy, data, finished, monkeypatch):
    """2 GB at full."""
    untrain(copy, "B2")
    unfinished_state(copy, data, "B2")
    real, read = checkpoint._read_array, []
    monkeypatch.setattr(checkpoint, "_read_array", lambda archive, name: read.append(name) or real(archive, name))
    assert cascade.main(words_of(data, copy)) == 0
    assert read.count("0 values") == 1 and weights(copy) == weights(finished)
    assert not list(copy.glob("*/training*.npz"))


def test_two_commands_in_one_folder(copy, data, capfd):
    pytest.importorskip("fcntl", reason="no locks on this system")
    with only_process(copy, "is training"):
        assert "another process is training in" in refusal(capfd, words_of(data, copy))
