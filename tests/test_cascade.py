"""The whole command on a corpus of chirps: what a run leaves, a second command, another beam, a lower rate."""

import json
import shlex

import numpy as np
import pytest
from chirps import MODELS, SETTINGS, refusal, results_of, snapshot, unfinished_state, untrain, weights, words_of

from mini_pkd import cascade, checkpoint, score_models, wer
from mini_pkd.corpus_folder import read_part
from mini_pkd.model_file import load_model
from mini_pkd.scales import TINY, count_parameters
from mini_pkd.stop_signal import Interrupted
from mini_pkd.transcript_file import read_transcript

# --- a whole run ----------------------------------------------------------------------------------


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
    expected = {model.name: model for model in TINY.models()}
    scale = TINY.override(SETTINGS)
    for name, m in models.items():
        assert (m["role"], m["size"], m["stage"]) == (expected[name].role, expected[name].size, expected[name].stage)
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


def test_a_stop_in_decoding_keeps_what_is_decoded(copy, data, finished, monkeypatch):
    (copy / "S2" / "result.json").unlink()
    real, calls = score_models.beam_search, []

    def beam_search(*arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise Interrupted  # what the search does when a signal has come
        return real(*arguments)

    monkeypatch.setattr(score_models, "beam_search", beam_search)
    assert cascade.main(words_of(data, copy)) == 130
    assert calls == [4, 3] and (copy / "S2" / "test-clean.partial.json").exists()
    assert cascade.main(words_of(data, copy)) == 0
    assert calls == [4, 3, 3]  # test-clean is not decoded again
    old, new = (json.loads((out / "S2" / "result.json").read_text()) for out in (finished, copy))
    assert old | {"decoding_seconds": 0} == new | {"decoding_seconds": 0} and not list(copy.rglob("*.partial.json"))


def test_max_hours_is_a_stop_in_time(data, finished):
    """It would take minutes; the half-trained model is there, and no result."""
    out = finished.parent / "max-hours"
    words = words_of(data, out, "--only", "B2", settings=[*SETTINGS, "epochs=4000"])
    assert cascade.main([*words, "--max-hours", str(4 / 3600)]) == 130
    _, before = checkpoint.load(out / "B2" / "training.npz")
    assert cascade.main([*words, "--max-hours", str(4 / 3600)]) == 130
    _, after = checkpoint.load(out / "B2" / "training.npz")
    assert 0 < before["step"] < after["step"] < 12000 and not (out / "B2" / "result.json").exists()


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


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_another_beam_decodes_everything_again(copy, data, finished, monkeypatch, capfd, jobs):
    """... and trains nothing; killed on the way, with --only, and back again: a table never mixes beams."""
    beams, real, real_score = [], score_models.beam_search, wer.score
    monkeypatch.setattr(score_models, "beam_search", lambda *a: beams.append(a[3]) or real(*a))
    trained = {p: p.stat().st_mtime_ns for p in copy.glob("*/model.npz")}

    def score(*texts):
        if len(beams) == 6:
            raise KeyboardInterrupt
        return real_score(*texts)

    with monkeypatch.context() as patch:  # stopped in the third model, after its second test set
        patch.setattr(score_models.wer, "score", score)
        assert cascade.main(words_of(data, copy, "beam=1")) == 130
    assert [m["name"] for m in results_of(copy)["models"]] == ["T1", "S1"]
    assert not (copy / "B1" / "result.json").exists()  # half of its texts are of the new beam
    assert "B2: decoded again, because the beam has changed" in capfd.readouterr().out
    assert cascade.main(words_of(data, copy, "beam=1", "--only", "S3", "--jobs", jobs)) == 0
    results = results_of(copy)
    assert results["settings"]["beam"] == 1
    assert {m["name"]: m["beam"] for m in results["models"]} == dict.fromkeys(MODELS, 1)
    for m in results["models"]:
        references = {u.id: u.text for u in read_part(data / "test-other")[0]}
        decoded = read_transcript(copy / m["name"] / "test-other.txt")
        assert m["wer"]["test-other"] == wer.score(references, decoded).wer
    assert set(beams) == {1}
    assert cascade.main(words_of(data, copy)) == 0  # back to beam=2
    old, new = (results_of(folder) for folder in (finished, copy))
    timeless = {"decoding_seconds": 0}
    assert [m | timeless for m in old["models"]] == [m | timeless for m in new["models"]]
    assert old["paired"] == new["paired"]
    assert {p: p.stat().st_mtime_ns for p in copy.glob("*/model.npz")} == trained


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_that_diverges_goes_on_with_a_lower_rate(copy, data, capfd, jobs):
    """The message names the command; what was trained with which rate is written down."""
    untrain(copy, "S3", "B2")
    arrays, meta = checkpoint.load(unfinished_state(copy, data, "B2"))
    meta["peak_rates"].append([2, 0.002 / 2**4])  # as after five bad steps with the fifth rate
    checkpoint.save(copy / "B2" / "training.npz", arrays, meta | {"bad_in_a_row": 5, "roll_backs": 4})
    command = words_of(data, copy, "--jobs", jobs)
    capfd.readouterr()
    assert cascade.main(command) == 1
    err = capfd.readouterr().err
    advice = f"best weights so far: python -m mini_pkd.cascade {shlex.join(command)} peak_rate=6.25e-05\n"
    assert "B2 has diverged: at step 1 " in err and advice in err and "Traceback" not in err
    assert (copy / "S3" / "result.json").exists()

    command = shlex.split(err[err.index("-m mini_pkd.cascade ") :].splitlines()[0])[2:]
    assert cascade.main(command) == 0
    assert "peak_rate falls from 0.002 to 6.25e-05 for B2" in capfd.readouterr().out
    rates = {m["name"]: m["peak_rates"] for m in results_of(copy)["models"]}
    assert rates == dict.fromkeys(MODELS, [[1, 0.002]]) | {"B2": [[1, 0.002], [2, 0.000125], [2, 6.25e-05]]}
    config = json.loads((copy / "config.json").read_text())
    assert config["settings"]["peak_rate"] == 6.25e-05
    others = [name for name in MODELS if name != "B2"]
    assert config["history"] == [{"before": {"settings.peak_rate": 0.002}, "trained": others}]
    untrain(copy, "B2")
    assert "other settings (peak_rate=6.25e-05)" in refusal(capfd, words_of(data, copy))  # up again: no
