"""feature_store.py: the store against plain mfcc, under kills, damage, full disks and other corpora."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import soundfile
from test_corpus import make_part, tone

from mini_pkd import UserError, feature_store
from mini_pkd.corpus import Utterance, collate, read_part
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.features import Normaliser, mfcc, read_audio


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
        patch.setattr(feature_store, "_extract", lambda paths: pytest.fail("computed again"))
        patch.setattr(feature_store, "only_process", lambda *_: pytest.fail("wants to write"))
        assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    fewer = utterances[:-1]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    tone(fewer[3].audio, 5000, seed=99)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    other = [Utterance(u.id, u.speaker, u.audio, u.text + " MORE") for u in fewer]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", other), other)
    monkeypatch.setattr(feature_store, "RECIPE", "another recipe")
    monkeypatch.setattr(feature_store, "mfcc", lambda waveform: mfcc(waveform) + 1)
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
    monkeypatch.setattr(feature_store, "COMMIT_BYTES", 1)  # one journal entry per utterance
    place = tmp_path / "store"
    journal, rows = place / "journal.jsonl", place / "rows.part"
    real = feature_store._extract

    def build_until(path):
        """Build, but die when this path is asked for; how many utterances were computed."""
        computed = []

        def extract(paths):
            if paths == [path]:
                raise Stop
            computed.extend(paths)
            return real(paths)

        monkeypatch.setattr(feature_store, "_extract", extract)
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
    monkeypatch.setattr(feature_store, "COMMIT_BYTES", int(rng.integers(5000, 20000)))
    real, stop = feature_store._extract, str(utterances[int(rng.integers(6, 12))].audio)

    def extract(paths):
        if paths == [stop]:
            raise Stop
        return real(paths)

    monkeypatch.setattr(feature_store, "_extract", extract)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    monkeypatch.setattr(feature_store, "_extract", real)
    FeatureStore.build(tmp_path / "store", utterances)
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_build_of_another_corpus_is_not_continued(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    monkeypatch.setattr(feature_store, "COMMIT_BYTES", 1)
    real, calls = feature_store._extract, []

    def extract_and_stop(paths):
        calls.append(paths)
        if len(calls) == 6:
            raise Stop
        return real(paths)

    monkeypatch.setattr(feature_store, "_extract", extract_and_stop)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    backwards = utterances[::-1]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", backwards), backwards)


def test_processes_give_the_same_bytes(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=3, utterances=9))
    utterances[5].audio.write_bytes(b"")
    FeatureStore.build(tmp_path / "one", utterances, workers=1)
    monkeypatch.setattr(feature_store, "SMALL_PART", 0)
    monkeypatch.setattr(feature_store, "CHUNK", 4)
    before = dict(os.environ)
    FeatureStore.build(tmp_path / "two", utterances, workers=2)
    assert dict(os.environ) == before
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_broken_workers_are_replaced_by_this_process(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))

    def breaks(paths, workers):
        yield from feature_store._extract(paths[:5])
        raise feature_store.BrokenProcessPool("killed")

    monkeypatch.setattr(feature_store, "SMALL_PART", 0)
    monkeypatch.setattr(feature_store, "_extract_in_processes", breaks)
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
        from mini_pkd import feature_store
        from mini_pkd.corpus import read_part
        feature_store.SMALL_PART, feature_store.CHUNK, feature_store.COMMIT_BYTES = 0, 1, 1
        if __name__ == "__main__":
            feature_store.FeatureStore.build(sys.argv[2], feature_store.read_part(sys.argv[1])[0], workers=2)
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
        patch.setattr(feature_store.os, "fsync", full)
        with pytest.raises(UserError, match="full"):
            FeatureStore.build(tmp_path / "store", utterances)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be used"):
        FeatureStore.build(tmp_path / "file" / "store", utterances)


def test_collate_lays_its_utterances_end_to_end(tmp_path):
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
