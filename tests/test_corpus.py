"""corpus.py: damaged folders, the store against plain mfcc and under kills, batches, a hostile download."""

import functools
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

import numpy as np
import pytest
import soundfile

from mini_pkd import UserError, corpus
from mini_pkd.corpus import (
    FeatureStore,
    Utterance,
    check_lattice,
    collate,
    download,
    estimate_normaliser,
    find_parts,
    make_batches,
    missing_roles,
    read_part,
    word_counts,
)
from mini_pkd.features import Normaliser, mfcc, read_audio


def tone(path, samples=4000, seed=0, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, samples])
    soundfile.write(path, (0.1 * rng.standard_normal(samples)).astype(np.float32), rate)


def make_part(folder, speakers=2, chapters=2, utterances=3, suffixes=("flac", "wav", "ogg")):
    """A small part; utterance lengths differ, and so do the formats."""
    count = 0
    for speaker in range(speakers):
        for chapter in range(chapters):
            place, lines = folder / f"{10 + speaker}" / f"{7 + chapter}", []
            for n in range(utterances):
                name = f"{10 + speaker}-{7 + chapter}-{n:04d}"
                tone(place / f"{name}.{suffixes[count % len(suffixes)]}", 300 + 571 * count, seed=count)
                lines.append(f"{name} WORD{count} IT'S {'AGAIN ' * n}".rstrip())
                count += 1
            (place / f"{10 + speaker}-{7 + chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


# ---------------------------------------------------------------- folders


def test_reads_a_part_in_order(tmp_path):
    utterances, problems = read_part(make_part(tmp_path / "train"))
    assert problems == [] and len(utterances) == 12
    assert [u.id for u in utterances] == sorted(u.id for u in utterances)
    assert utterances[0].id == "10-7-0000" and utterances[0].text == "WORD0 IT'S"
    assert utterances[-1].speaker == "11" and utterances[-1].text == "WORD11 IT'S AGAIN AGAIN"
    assert {u.audio.suffix for u in utterances} == {".flac", ".wav", ".ogg"}
    assert all(u.audio.exists() and u.audio.stem == u.id for u in utterances)
    assert read_part(str(tmp_path / "train"))[0] == utterances
    counts = word_counts(utterances)
    assert counts["IT'S"] == 12 and counts["AGAIN"] == 4 * (0 + 1 + 2) and counts["WORD7"] == 1


def test_every_damage_is_listed_and_skipped(tmp_path):
    folder = make_part(tmp_path / "train", chapters=1)
    place = folder / "10" / "7"
    transcript = place / "10-7.trans.txt"
    (place / "10-7-0001.wav").unlink()  # transcript without audio
    tone(place / "10-7-0777.wav")  # audio without transcript
    tone(place / "10-7-0002.flac")  # the same utterance in two formats
    tone(place / "10-7-0005.wav")
    lines = ["10-7-0000 TWICE", "10-7-0005", "", "GIBBERISH", "   ", "10-7-0009 NO AUDIO"]
    transcript.write_text(transcript.read_text() + "\n".join(lines) + "\n")
    (folder / "12" / "1").mkdir(parents=True)
    tone(folder / "12" / "1" / "12-1-0000.wav")
    (folder / "12" / "1" / "12-1.trans.txt").write_bytes(b"12-1-0000 \xff\xfe\n")
    (folder / "12" / "12.trans.txt").write_text("12-0 TOO HIGH\n")
    (place / "._10-7.trans.txt").write_bytes(b"\x00\xff")  # what macOS leaves behind
    (folder / "README.TXT").write_text("not a speaker")

    utterances, problems = read_part(folder)
    assert [u.id for u in utterances] == ["10-7-0000", "10-7-0002"] + [f"11-7-{n:04d}" for n in range(3)]
    assert utterances[0].text == "WORD0 IT'S"
    reasons = sorted(f"{p}" for p in problems)
    for words in [
        "no audio file for 10-7-0001",
        "no audio file for 10-7-0009",
        "no transcript line for 10-7-0777",
        "second audio file for 10-7-0002",
        "10-7-0000 stands twice",
        "transcript of 10-7-0005 is empty",
        "malformed line 'GIBBERISH'",
        "not UTF-8",
        "no transcript line for 12-1-0000",
        "outside any <chapter>",
    ]:
        assert sum(words in reason for reason in reasons) == 1, (words, reasons)
    assert len(problems) == 10
    with pytest.raises(UserError, match="--strict"):
        read_part(folder, strict=True)


def test_the_same_id_in_two_chapters(tmp_path):
    folder = make_part(tmp_path / "train", speakers=1, chapters=1, utterances=1)
    tone(folder / "10" / "8" / "10-7-0000.wav")
    (folder / "10" / "8" / "10-8.trans.txt").write_text("10-7-0000 OTHER\n")
    utterances, problems = read_part(folder)
    assert [u.text for u in utterances] == ["WORD0 IT'S"]
    assert len(problems) == 1 and "10-7.trans.txt" in problems[0].reason


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist.*<speaker>/<chapter>"):
        read_part(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no utterance was found.*<speaker>/<chapter>"):
        read_part(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        read_part(tmp_path / "file")
    with pytest.raises(UserError, match="does not exist"):
        find_parts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no part for train .* and dev"):
        find_parts(tmp_path)


@pytest.mark.parametrize(
    "names, train, dev, tests",
    [
        (["train", "dev", "test-clean", "test-other"], ["train"], ["dev"], 2),
        (
            ["train-other-500", "train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other", "x"],
            ["train-clean-100", "train-other-500"],
            ["dev-clean", "dev-other"],
            2,
        ),
        (["train-clean-5", "dev-clean-2"], ["train-clean-5"], ["dev-clean-2"], 0),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_find_parts(tmp_path, names, train, dev, tests, nested):
    for name in names:
        (tmp_path / ("LibriSpeech" if nested else ".") / name).mkdir(parents=True)
    parts = find_parts(tmp_path)
    assert list(parts) == ["train", "dev", "test-clean", "test-other"]
    assert [p.name for p in parts["train"]] == train and [p.name for p in parts["dev"]] == dev
    assert len(parts["test-clean"] + parts["test-other"]) == tests
    sentence = missing_roles(parts)
    assert (sentence == "") == (tests == 2)
    if not tests:
        assert "no test-clean and no test-other" in sentence
        with pytest.raises(UserError, match="test-clean"):
            find_parts(tmp_path, required=("test-clean",))


# ---------------------------------------------------------------- the feature store


def assert_store_is_right(store, utterances, tolerance=0.0):
    assert len(store) == len(utterances) and store.ids == [u.id for u in utterances]
    assert store.texts == [u.text for u in utterances] and store.speakers == [u.speaker for u in utterances]
    for i, u in enumerate(utterances):
        rows = mfcc(read_audio(u.audio))
        assert store[i].dtype == np.float32 and store[i].shape == rows.shape == (store.lengths[i], 40)
        assert np.abs(store[i] - rows).max() <= tolerance
    assert store.num_rows == store.lengths.sum() and store.lengths.dtype == np.int64


def test_store_holds_what_mfcc_gives(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    store = FeatureStore.build(tmp_path / "store", utterances)
    assert_store_is_right(store, utterances)
    assert_store_is_right(FeatureStore(tmp_path / "store"), utterances)
    assert np.array_equal(store[-1], store[len(store) - 1]) and len(list(store)) == len(store)
    with pytest.raises(IndexError):
        store[len(store)]
    store[0][:] = 0  # a copy: the file stays as it is
    assert_store_is_right(store, utterances)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["index.json", "lock", "rows.bin"]
    half = FeatureStore.build(tmp_path / "half", utterances, dtype=np.float16)
    assert_store_is_right(half, utterances, tolerance=0.07)  # |c0| < 256: half of float16's step of 1/8


def test_normaliser_from_sums_equals_the_one_from_rows(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    halves = {"a": utterances[:5], "b": utterances[5:]}
    stores = [FeatureStore.build(tmp_path / name, half) for name, half in halves.items()]
    direct = Normaliser.estimate(rows for store in stores for rows in store)
    summed = estimate_normaliser(stores)
    assert np.abs(direct.mean - summed.mean).max() < 1e-5 and np.abs(direct.std - summed.std).max() < 1e-5
    raw = stores[0][2]
    stores[0].normaliser = summed
    assert np.array_equal(stores[0][2], summed(raw))
    reopened = FeatureStore.build(tmp_path / "a", utterances[:5], normaliser=summed)
    assert np.array_equal(reopened[2], summed(raw))


def test_a_finished_store_is_opened_and_a_changed_corpus_noticed(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    FeatureStore.build(tmp_path / "store", utterances)
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "_extract", lambda paths: pytest.fail("computed again"))
        patch.setattr(corpus, "_only_builder", lambda folder: pytest.fail("wants to write"))
        assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    fewer = utterances[:-1]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    tone(fewer[3].audio, 5000, seed=99)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    other = [Utterance(u.id, u.speaker, u.audio, u.text + " MORE") for u in fewer]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", other), other)
    monkeypatch.setattr(corpus, "RECIPE", "another recipe")
    monkeypatch.setattr(corpus, "mfcc", lambda waveform: mfcc(waveform) + 1)
    store = FeatureStore.build(tmp_path / "store", other)
    assert np.array_equal(store[0], mfcc(read_audio(other[0].audio)) + 1)


def test_bad_audio_is_skipped_and_listed_unless_strict(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    utterances[0].audio.write_bytes(b"")
    utterances[4].audio.write_bytes(b"not audio")
    utterances[7].audio.unlink()
    soundfile.write(utterances[11].audio, np.zeros((100, 2), np.float32), 16000)
    good = [u for i, u in enumerate(utterances) if i not in (0, 4, 7, 11)]
    for _ in range(2):  # built, then opened
        store = FeatureStore.build(tmp_path / "store", utterances)
        assert_store_is_right(store, good)
        assert [p.where for p in store.problems] == [utterances[i].id for i in (0, 4, 7, 11)]
        assert "mono" in store.problems[3].reason
    with pytest.raises(UserError, match="--strict"):
        FeatureStore.build(tmp_path / "store", utterances, strict=True)
    with pytest.raises(UserError, match="--strict"):
        FeatureStore.build(tmp_path / "fresh", utterances, strict=True)
    with pytest.raises(UserError, match="none of the 2"):
        FeatureStore.build(tmp_path / "none", [utterances[0], utterances[4]])
    with pytest.raises(UserError, match="no utterances"):
        FeatureStore.build(tmp_path / "none", [])


def test_damaged_or_absent_stores(tmp_path):
    with pytest.raises(UserError, match="no complete feature store"):
        FeatureStore(tmp_path / "absent")
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    FeatureStore.build(tmp_path / "store", utterances)
    os.truncate(tmp_path / "store" / "rows.bin", 1000)
    with pytest.raises(UserError, match="size"):
        FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    (tmp_path / "store" / "index.json").write_text('{"fingerprint": ')
    with pytest.raises(UserError, match="no complete feature store"):
        FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


class Stop(BaseException):
    """Stands for a kill: nothing in the package catches it."""


@pytest.mark.parametrize("first, second", [(1, 2), (2, 5), (6, 12), (7, 9), (11, 12)])
@pytest.mark.parametrize("damage", ["none", "torn", "no newline", "rows missing", "rows extra"])
def test_a_build_interrupted_twice_continues_to_the_same_bytes(tmp_path, monkeypatch, first, second, damage):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    utterances[2].audio.write_bytes(b"")  # problems must survive an interruption too
    FeatureStore.build(tmp_path / "whole", utterances)
    monkeypatch.setattr(corpus, "COMMIT_BYTES", 1)  # one journal entry per utterance
    place = tmp_path / "store"
    journal, rows = place / "journal.jsonl", place / "rows.part"
    real = corpus._extract

    def build_until(path):
        """Build, but die when this path is asked for; how many utterances were computed."""
        computed = []

        def extract(paths):
            if paths == [path]:
                raise Stop
            computed.extend(paths)
            return real(paths)

        monkeypatch.setattr(corpus, "_extract", extract)
        if path is None:
            FeatureStore.build(place, utterances)
        else:
            with pytest.raises(Stop):
                FeatureStore.build(place, utterances)
            assert not (place / "index.json").exists()
        return len(computed)

    assert build_until(str(utterances[first - 1].audio)) == first - 1
    if damage == "torn":
        journal.write_bytes(journal.read_bytes() + b'{"done": 9, "ro')
    elif damage == "no newline":
        journal.write_bytes(journal.read_bytes()[:-1])
    elif damage == "rows missing":  # the journal promises more than there is
        rows.write_bytes(rows.read_bytes()[:-1])
    elif damage == "rows extra":
        rows.write_bytes(rows.read_bytes() + b"\x01" * 777)
    redone = 1 if first > 1 and damage in ("no newline", "rows missing") else 0
    assert build_until(str(utterances[second - 1].audio)) == second - first + redone
    assert build_until(None) == len(utterances) - second + 1
    for name in ("rows.bin", "index.json"):
        assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [p.where for p in FeatureStore(place).problems] == [utterances[2].id]


@pytest.mark.parametrize("seed", range(6))
def test_rows_beyond_the_last_journal_entry_are_done_again(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    utterances, _ = read_part(make_part(tmp_path / "train"))
    FeatureStore.build(tmp_path / "whole", utterances)
    monkeypatch.setattr(corpus, "COMMIT_BYTES", int(rng.integers(5000, 20000)))
    real, stop = corpus._extract, str(utterances[int(rng.integers(6, 12))].audio)

    def extract(paths):
        if paths == [stop]:
            raise Stop
        return real(paths)

    monkeypatch.setattr(corpus, "_extract", extract)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    monkeypatch.setattr(corpus, "_extract", real)
    FeatureStore.build(tmp_path / "store", utterances)
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_build_of_another_corpus_is_not_continued(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    monkeypatch.setattr(corpus, "COMMIT_BYTES", 1)
    real, calls = corpus._extract, []

    def extract_and_stop(paths):
        calls.append(paths)
        if len(calls) == 6:
            raise Stop
        return real(paths)

    monkeypatch.setattr(corpus, "_extract", extract_and_stop)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    backwards = utterances[::-1]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", backwards), backwards)


def test_processes_give_the_same_bytes(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=3, utterances=9))
    utterances[5].audio.write_bytes(b"")
    FeatureStore.build(tmp_path / "one", utterances, workers=1)
    monkeypatch.setattr(corpus, "SMALL_PART", 0)
    monkeypatch.setattr(corpus, "CHUNK", 4)
    before = dict(os.environ)
    FeatureStore.build(tmp_path / "two", utterances, workers=2)
    assert dict(os.environ) == before
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_broken_workers_are_replaced_by_this_process(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))

    def breaks(paths, workers):
        yield from corpus._extract(paths[:5])
        raise corpus.BrokenProcessPool("killed")

    monkeypatch.setattr(corpus, "SMALL_PART", 0)
    monkeypatch.setattr(corpus, "_extract_in_processes", breaks)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances, workers=2), utterances)


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and /proc are POSIX")
def test_a_killed_build_leaves_no_workers_and_continues(tmp_path):
    """A real SIGKILL in the middle of a build with two processes, then the same build again."""
    part = tmp_path / "train"
    for n in range(24):  # 8 s of audio each, so that the kill comes in the middle
        tone(part / "1" / "1" / f"1-1-{n:04d}.wav", 128000, seed=n)
    (part / "1" / "1" / "1-1.trans.txt").write_text("".join(f"1-1-{n:04d} WORD\n" for n in range(24)))
    script = tmp_path / "build.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from mini_pkd import corpus
        corpus.SMALL_PART, corpus.CHUNK, corpus.COMMIT_BYTES = 0, 1, 1
        if __name__ == "__main__":
            corpus.FeatureStore.build(sys.argv[2], corpus.read_part(sys.argv[1])[0], workers=2)
        """)
    )
    command = [sys.executable, str(script), str(part), str(tmp_path / "store")]
    process = subprocess.Popen(command, start_new_session=True)
    journal = tmp_path / "store" / "journal.jsonl"
    deadline = time.time() + 30
    while time.time() < deadline and not (journal.exists() and journal.read_text().count("\n") > 3):
        time.sleep(0.005)
    with pytest.raises(UserError, match="another process is building"):
        FeatureStore.build(tmp_path / "store", read_part(part)[0])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "store" / "index.json").exists(), "finished before the kill: give it more audio"
    deadline = time.time() + 10  # the workers are in the script's own process group
    while time.time() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("worker processes outlived their parent")
    done = json.loads(journal.read_text().rpartition("\n")[0].splitlines()[-1])["done"]
    assert 0 < done < 24
    utterances, _ = read_part(part)
    FeatureStore.build(tmp_path / "store", utterances, workers=1)
    FeatureStore.build(tmp_path / "whole", utterances, workers=1)
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_and_an_unwritable_folder_are_sentences(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(corpus.os, "fsync", full)
        with pytest.raises(UserError, match="full"):
            FeatureStore.build(tmp_path / "store", utterances)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be used"):
        FeatureStore.build(tmp_path / "file" / "store", utterances)


# ---------------------------------------------------------------- batches


def ragged_lengths(seed, n=200):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(1, 1500, size=n - 2), [1, 1500]])


@pytest.mark.parametrize("seed", range(20))
def test_every_utterance_once_within_both_bounds(seed):
    lengths = ragged_lengths(seed)
    for shuffle in (False, True):
        batches = make_batches(lengths, 4000, 8, seed=seed, epoch=3, shuffle=shuffle)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= 8 and lengths[batch].sum() <= 4000 for batch in batches)
        assert any(len(batch) == 8 for batch in batches)
        # Neighbours fill a batch: two that follow each other in length never fit into one.
        spread = np.mean([lengths[b].max() / lengths[b].min() for b in batches if lengths[b].min() > 50])
        assert spread < 1.6


def test_batches_are_a_function_of_seed_and_epoch():
    lengths = ragged_lengths(0)
    make = functools.partial(make_batches, lengths, 4000, 8)
    assert make(seed=1, epoch=5) == make(seed=1, epoch=5)
    np.random.default_rng(0).random(100)  # history is nothing to it
    versions = [make(seed=s, epoch=e) for s in range(3) for e in range(3)]
    assert len({json.dumps(v) for v in versions}) == 9
    groups = [{frozenset(b) for b in v} for v in versions]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2  # other companions, not only another order
    firsts = [lengths[v[0]].mean() for v in versions]
    assert max(firsts) > 2 * min(firsts)  # epochs do not all begin with the same lengths
    assert make(shuffle=False, epoch=0) == make(shuffle=False, epoch=1, seed=9)


def test_subsets_bounds_and_refusals():
    lengths = ragged_lengths(1)
    kept = [3, 5, 8, 13, 21]
    assert sorted(sum(make_batches(lengths, 4000, 2, indices=kept), [])) == kept
    assert make_batches(lengths, 1500, 1, shuffle=False)[-1] == [199]
    assert make_batches([], 100, 4) == [] and make_batches(lengths, 2000, 4, indices=[]) == []
    with pytest.raises(UserError, match="1500 frames"):
        make_batches(lengths, 1499, 4)
    with pytest.raises(UserError, match="max_utterances is 0"):
        make_batches(lengths, 4000, 0)


def test_curriculum_goes_from_short_to_long():
    lengths = ragged_lengths(2)
    make = functools.partial(make_batches, lengths, 4000, 8, curriculum_epochs=4, curriculum_fraction=0.4)
    used = [np.array(sum(make(epoch=e), [])) for e in range(6)]
    assert [len(u) for u in used] == [80, 110, 140, 170, 200, 200]
    for u in used:
        assert len(set(u.tolist())) == len(u)
        assert sorted(lengths[u]) == sorted(lengths)[: len(u)]  # the shortest ones
    means = [lengths[b].mean() for b in make(epoch=0)]
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] > 0.9
    means = [lengths[b].mean() for b in make(epoch=1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.7
    assert make(epoch=5) == make_batches(lengths, 4000, 8, epoch=5)


def test_check_lattice():
    rows, labels, frames = [3, 0, 1, 1, 9, 4], [15, 1, 6, 0, 2, 1], [24, 7, 8, 8, 9999, 33]
    kept, problems = check_lattice(rows, labels, 5, frames, max_frames=100, ids=list("abcdef"))
    assert kept == [0, 3, 5]
    assert [p.where for p in problems] == ["b", "c", "e"]
    assert "too short" in problems[0].reason and "6 labels" in problems[1].reason
    assert "9999 frames" in problems[2].reason
    assert check_lattice(rows, labels)[0] == [0, 3, 4, 5]


def test_collate_lays_utterances_end_to_end(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    store = FeatureStore.build(tmp_path / "store", utterances)
    store.normaliser = estimate_normaliser([store])
    targets = [list(range(1, 1 + i % 4)) for i in range(len(store))]  # some without labels
    for indices in ([5, 0, 11], [4], [8, 4, 0], np.array([3, 2])):
        batch = collate(store, indices, targets)
        assert batch.features.dtype == np.float32 and batch.features.shape == (batch.lengths.sum(), 40)
        assert batch.lengths.dtype == batch.labels.dtype == batch.label_lengths.dtype == np.int64
        assert batch.ids == [utterances[i].id for i in indices]
        rows = np.split(batch.features, np.cumsum(batch.lengths)[:-1])
        labels = np.split(batch.labels, np.cumsum(batch.label_lengths)[:-1])
        for i, r, u in zip(indices, rows, labels, strict=True):
            assert np.array_equal(r, store[i]) and u.tolist() == targets[i]


# ---------------------------------------------------------------- download


def archive_bytes(part="dev-toy", extra=()):
    """A .tar.gz in LibriSpeech's shape; incompressible content, so that it has some size."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {
            "LibriSpeech/README.TXT": b"hello",
            f"LibriSpeech/{part}/1/2/1-2-0000.flac": rng.bytes(300_000),
            f"LibriSpeech/{part}/1/2/1-2.trans.txt": b"1-2-0000 HELLO\n",
        }
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves one archive. `plan` says what happens to each request: a number cuts after so many bytes."""

    def do_GET(self):
        server = self.server
        server.requests.append(self.headers.get("Range"))
        action = server.plan.pop(0) if server.plan else None
        if isinstance(action, str) or self.path != "/12/dev-toy.tar.gz":
            self.send_error(int(action or 404))
            return
        start = 0
        if self.headers.get("Range") and server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
        else:
            self.send_response(200)
        body = server.data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if action is None else body[:action])
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """server(data, plan=...) -> (download with everything set, list of Range headers seen)."""
    running = []

    def start(data, plan=(), ranges=True, size=None, md5=None):
        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.data, httpd.plan, httpd.ranges, httpd.requests = data, list(plan), ranges, []
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(httpd)
        entry = ("12", len(data) if size is None else size, md5 or hashlib.md5(data).hexdigest())
        get = functools.partial(
            download,
            "dev-toy",
            mirror=f"http://127.0.0.1:{httpd.server_port}",
            archives={"dev-toy": entry},
            pause=0.0,
            show=False,
        )
        return get, httpd.requests

    yield start
    for httpd in running:
        httpd.shutdown()
        httpd.server_close()


def assert_in_place(folder, to):
    assert folder == to / "LibriSpeech" / "dev-toy"
    assert (folder / "1" / "2" / "1-2-0000.flac").stat().st_size == 300_000
    assert (folder / ".complete").exists() and (to / "LibriSpeech" / "README.TXT").read_text() == "hello"
    assert sorted(p.name for p in to.iterdir()) == ["LibriSpeech"]  # no archive, no leftovers
    utterances, problems = read_part(folder)
    assert [u.text for u in utterances] == ["HELLO"] and problems == []


def test_download_and_do_nothing_the_second_time(tmp_path, server):
    get, requests = server(archive_bytes())
    assert_in_place(get(tmp_path), tmp_path)
    assert get(tmp_path) == tmp_path / "LibriSpeech" / "dev-toy" and len(requests) == 1


def test_dropped_connections_are_resumed_where_they_broke(tmp_path, server):
    get, requests = server(archive_bytes(), plan=[100_000, "503", 50_000, 0, None])
    assert_in_place(get(tmp_path), tmp_path)
    assert requests == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_an_interrupted_run_is_continued_by_the_next(tmp_path, server):
    data = archive_bytes()
    get, requests = server(data, plan=[70_000, 0, 0, 0, 0])
    with pytest.raises(UserError, match=r"70000 of .* bytes are here.*continues"):
        get(tmp_path, retries=3)
    assert (tmp_path / "dev-toy.tar.gz.part").read_bytes() == data[:70_000]
    assert_in_place(get(tmp_path), tmp_path)
    assert requests[-1] == "bytes=70000-"


def test_a_server_that_ignores_ranges(tmp_path, server):
    get, requests = server(archive_bytes(), plan=[100_000, None], ranges=False)
    assert_in_place(get(tmp_path), tmp_path)
    assert requests == [None, "bytes=100000-"]


def test_wrong_md5_is_noticed_and_not_kept(tmp_path, server):
    get, _ = server(archive_bytes(), md5="0" * 32)
    with pytest.raises(UserError, match="md5 .* where 0000"):
        get(tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing that a second run would trust


def test_wrong_size_missing_file_and_no_network(tmp_path, server):
    data = archive_bytes()
    get, _ = server(data, size=len(data) + 5)
    with pytest.raises(UserError, match="another file"):
        get(tmp_path)
    get, requests = server(data, plan=["404"])
    with pytest.raises(UserError, match="404"):
        get(tmp_path)
    assert len(requests) == 1  # what is not there is not asked for again
    with pytest.raises(UserError, match="check the network"):
        download("dev-toy", tmp_path, "http://127.0.0.1:9", {"dev-toy": ("12", 9, "")}, pause=0.0, show=False)
    with pytest.raises(UserError, match="no part 'dev-cleam'.*dev-clean"):
        download("dev-cleam", tmp_path)


def test_a_full_disk_is_noticed_before_the_download(tmp_path, server):
    get, requests = server(archive_bytes(), size=10**18)
    with pytest.raises(UserError, match="GB free"):
        get(tmp_path)
    assert requests == []


def test_an_existing_archive_is_used_and_kept_if_asked(tmp_path, server):
    data = archive_bytes()
    get, requests = server(data)
    (tmp_path / "dev-toy.tar.gz").write_bytes(data)
    get(tmp_path, keep_archive=True)
    assert requests == [] and (tmp_path / "dev-toy.tar.gz").read_bytes() == data


def test_a_folder_without_marker_is_not_trusted(tmp_path, server):
    get, requests = server(archive_bytes())
    (tmp_path / "LibriSpeech" / "dev-toy").mkdir(parents=True)
    with pytest.raises(UserError, match="without a completion marker"):
        get(tmp_path)
    (tmp_path / "LibriSpeech" / "dev-toy" / ".complete").touch()
    get(tmp_path)
    assert requests == []


def evil_members():
    def member(name, **fields):
        info = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(info, key, value)
        return info

    yield member("../evil.txt", size=3)
    yield member("LibriSpeech/../../evil.txt", size=3)
    yield member("/evil.txt", size=3)
    yield member("LibriSpeech\\..\\..\\evil.txt", size=3)
    yield member("LibriSpeech/link", type=tarfile.SYMTYPE, linkname="../../..")
    yield member("LibriSpeech/hard", type=tarfile.LNKTYPE, linkname="/etc/hostname")
    yield member("LibriSpeech/pipe", type=tarfile.FIFOTYPE)


@pytest.mark.parametrize("with_filter", [True, False])
@pytest.mark.parametrize("member", list(evil_members()), ids=lambda m: m.name)
def test_malicious_archives_put_nothing_in_place(tmp_path, server, monkeypatch, member, with_filter):
    if not with_filter:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)  # as on early 3.10 and 3.11
    get, _ = server(archive_bytes(extra=[member]))
    to = tmp_path / "deep" / "to"
    with pytest.raises(UserError, match="not a plain file inside it"):
        get(to)
    assert [p.name for p in to.iterdir()] == ["dev-toy.tar.gz"]
    assert not list(tmp_path.rglob("evil*")) and not os.path.exists("/evil.txt")


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_good_archives_unpack_without_the_filter_too(tmp_path, server, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    get, _ = server(archive_bytes())
    assert_in_place(get(tmp_path), tmp_path)


def test_an_archive_of_something_else_and_one_cut_short(tmp_path, server):
    get, _ = server(archive_bytes(part="other"))
    with pytest.raises(UserError, match="no folder LibriSpeech/dev-toy"):
        get(tmp_path / "a")
    get, _ = server(archive_bytes()[:200_000])  # the md5 matches: damaged before it was published
    with pytest.raises(UserError, match="cannot be unpacked"):
        get(tmp_path / "b")
    assert not (tmp_path / "b" / "LibriSpeech").exists()


def test_an_interrupted_unpacking_starts_again(tmp_path, server, monkeypatch):
    get, _ = server(archive_bytes())
    real = tarfile.TarFile.extract

    def extract_two(self, member, *rest, **options):
        if member.name.endswith(".trans.txt"):
            raise Stop
        return real(self, member, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "extract", extract_two)
        with pytest.raises(Stop):
            get(tmp_path)
    assert not (tmp_path / "LibriSpeech").exists()
    assert_in_place(get(tmp_path), tmp_path)


def test_archive_table_is_the_published_one():
    assert len(corpus.ARCHIVES) == 9
    assert sum(corpus.ARCHIVES[p][1] for p in corpus.ROLES["train"] if p in corpus.ARCHIVES) == 60363243380
    assert all(len(md5) == 32 and number in ("12", "31") for number, _, md5 in corpus.ARCHIVES.values())


# ---------------------------------------------------------------- commands


def test_check_command(tmp_path, capsys):
    make_part(tmp_path / "train")
    make_part(tmp_path / "dev", chapters=1)
    (tmp_path / "dev" / "10" / "7" / "10-7-0000.flac").write_bytes(b"")
    assert corpus.main(["check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    seconds = sum(300 + 571 * n for n in range(12)) / 16000
    train = next(line.split() for line in out.splitlines() if line.startswith("train"))
    assert train == ["train", "12", "2", "36", f"{seconds / 3600:.2f}", "0"]
    assert "10-7-0000.flac: cannot be read" in out and "no test-clean and no test-other" in out
    assert corpus.main(["check", str(tmp_path), "--strict"]) == 2
    assert corpus.main(["check", str(tmp_path / "train")]) == 0
    assert corpus.main(["check", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_commands_refuse_in_one_sentence(tmp_path, capsys):
    assert corpus.main(["download", "--parts", "dev-clean", "dev-cleam", "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "dev-cleam" in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []


def test_demo_runs_on_a_small_corpus(tmp_path, capsys):
    for part in ("train", "dev"):
        make_part(tmp_path / part)
    corpus.demo(tmp_path)
    out = capsys.readouterr().out
    assert "12 utterances, 0 problems" in out and "nothing padded" in out
