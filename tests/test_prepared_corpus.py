"""A corpus prepared in one call: bad folders, utterances and transcripts, and who shares features."""

import json
import os
import shutil
import time
import types
from pathlib import Path

import numpy as np
import pytest
from chirps import PARTS, SETTINGS, refusal, start, wait_for, words_of
from handful import new_model

from mini_pkd import UserError, cascade, wer
from mini_pkd.corpus_folder import read_part
from mini_pkd.lock import only_process
from mini_pkd.prepared_corpus import Part, prepare_corpus
from mini_pkd.scales import TINY
from mini_pkd.transcript_file import read_transcript


def test_an_utterance_whose_labels_no_lattice_can_hold_is_listed(handful):
    part, bpe, _ = handful
    store = types.SimpleNamespace(
        ids=["good", "short", "long"], texts=["ONE", "ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT", "TWO"],
        lengths=np.array([80, 4, 900]), folder="here",
    )  # fmt: skip
    kept, problems = Part.encode(store, bpe, max_frames=800)
    assert kept.indices.tolist() == [0]
    assert [p.where for p in problems] == ["short", "long"]
    store.lengths = np.array([900, 900, 900])
    with pytest.raises(UserError, match="no utterance"):
        Part.encode(store, bpe, max_frames=800)


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
    kept, _ = Part.encode(store, bpe, reduction=reduction)
    assert lengths[kept.indices].min() == reduction * (enough - 1) + 1
    if reduction == 8:
        encoder = new_model(bpe)
        shortest = int(lengths[kept.indices].min())
        rows = encoder.encode(np.zeros((shortest, 40), np.float32), np.array([shortest]))[1]
        assert rows.tolist() == [enough]
        default, _ = Part.encode(store, bpe)
        assert default.indices.tolist() == kept.indices.tolist()


def test_transcripts_with_unknown_characters_are_listed(handful):
    _, bpe, _ = handful
    texts = ["ONE", "ROOM 101", "TWO", "SEPT É", "ONE \u2581", "THREE"]
    store = types.SimpleNamespace(
        ids=list("abcdef"), texts=texts, lengths=np.array([80, 80, 900, 80, 80, 81]), folder="here"
    )
    part, problems = Part.encode(store, bpe, max_frames=800)
    assert part.indices.tolist() == [0, 5]
    assert [p.where for p in problems] == ["b", "d", "e", "c"]
    for problem, character in zip(problems, "1É\u2581", strict=False):
        assert "the vocabulary does not know the character" in problem.reason and character in problem.reason
    assert "too long" in problems[3].reason
    assert [part.targets[i].tolist() for i in part.indices] == [bpe.encode("ONE"), bpe.encode("THREE")]
    with pytest.raises(UserError, match="utterance b: the vocabulary does not know .*--strict"):
        Part.encode(store, bpe, max_frames=800, strict=True)
    with pytest.raises(UserError, match="too long"):
        store.texts = ["ONE"] * 6
        Part.encode(store, bpe, max_frames=10)
    store.texts = ["1"] * 6
    with pytest.raises(UserError, match="no utterance in here can be used \\(the first problem is a: the vocabulary"):
        Part.encode(store, bpe)


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


@pytest.mark.slow
def test_two_seeds_started_together_share_the_features(data, tmp_path):
    """Both find the store locked, as by a third; one builds it, the other waits and opens it: both finish."""
    features = cascade.Cascade(TINY.override(SETTINGS), data, tmp_path / "run0").features("train")
    features.mkdir(parents=True)
    with only_process(features, "is building"):
        processes = [start(words_of(data, tmp_path / f"run{seed}", "--seed", seed, "--only", "B2")) for seed in (0, 1)]
        for seed, process in enumerate(processes):
            wait_for(tmp_path / f"run{seed}" / "vocabulary.json", process)
        time.sleep(2)
        assert [process.poll() for process in processes] == [None, None]
    for process in processes:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and "features of train, by another process" in out, out
    assert len({(tmp_path / f"run{seed}" / "B2" / "model.npz").read_bytes() for seed in (0, 1)}) == 2
    assert {p.name for p in features.iterdir()} == {"rows.bin", "index.json", "lock"}


def test_an_utterance_that_two_parts_hold_counts_once(data, tmp_path):
    """Mini LibriSpeech beside LibriSpeech; and what is odd about such a copy is said at the start."""
    for name, role in {"train-clean-5": "train", "train-clean-100": "train", "dev-clean-2": "dev"}.items():
        shutil.copytree(data / role, tmp_path / "corpus" / name)
    said = []
    settings = TINY.override(SETTINGS).settings
    corpus = prepare_corpus(tmp_path / "corpus", tmp_path, settings, say=said.append, progress=False)
    assert len(corpus.train.store) == 12 and len(corpus.problems) == 12
    assert corpus.train.store.ids[0] in corpus.problems[0].reason and "train-clean-100" in corpus.problems[0].reason
    assert said[0] == "This corpus has no test-clean and no test-other, so no WER will be reported."
    assert sum("utterances that this part of LibriSpeech has" in sentence for sentence in said) == 3


def test_in_one_call(data, tmp_path, capfd):
    """What a notebook needs; the second call opens what the first has made, and may bring a vocabulary."""
    settings, said = TINY.override(SETTINGS).settings, []
    corpus = prepare_corpus(data, tmp_path, settings, say=said.append, progress=False)
    assert said == ["chirps: train 0.00 h, dev 0.00 h, test-clean 0.00 h, test-other 0.00 h; 8 symbols"]
    assert {part: len(store) for part, store in corpus.tests.items()} == {"test-clean": 4, "test-other": 3}
    assert (len(corpus.train.indices), len(corpus.dev.indices), corpus.problems) == (12, 4, [])
    batch = corpus.train.batch([0, 1])
    texts = [corpus.bpe.decode(labels.tolist()) for labels in np.split(batch.labels, batch.label_lengths[:1])]
    assert texts == corpus.train.store.texts[:2]
    rows = np.concatenate(list(corpus.train.store))
    assert np.abs(rows.mean(axis=0)).max() < 1e-4 and np.abs(rows.std(axis=0) - 1).max() < 1e-3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")}
    asked = []
    again = prepare_corpus(data, tmp_path, settings, lambda utterances: asked.append(len(utterances)) or corpus.bpe)
    assert again.bpe is corpus.bpe and asked == [12] and len(before) == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.bin")} == before
