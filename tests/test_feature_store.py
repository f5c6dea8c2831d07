"""feature_store.py: the store against plain mfcc, under kills, damage, full disks and other corpora."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import soundfile
from test_corpus_folder import make_part, tone

from mini_pkd import UserError, feature_store, feature_store_files, feature_workers
from mini_pkd.audio_file import read_audio
from mini_pkd.corpus import collate
from mini_pkd.corpus_folder import Utterance, read_part
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.features import Normaliser, mfcc
from mini_pkd.lock import Lock


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
        patch.setattr(feature_workers, "_extract", lambda paths: pytest.fail("computed again"))
        patch.setattr(feature_store, "Lock", lambda *_: pytest.fail("wants to write"))
        assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    fewer, old = utterances[:-1], FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    assert_store_is_right(old, utterances)  # who has the old one open keeps it: its file is replaced, not emptied
    tone(fewer[3].audio, 5000, seed=99)
    assert_store_is_right(FeatureStore.build(tmp_path / "store", fewer), fewer)
    other = [Utterance(u.id, u.speaker, u.audio, u.text + " MORE") for u in fewer]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", other), other)
    monkeypatch.setattr(feature_store, "RECIPE", "another recipe")
    monkeypatch.setattr(feature_workers, "mfcc", lambda waveform: mfcc(waveform) + 1)
    store = FeatureStore.build(tmp_path / "store", other)
    assert np.array_equal(store[0], mfcc(read_audio(other[0].audio)) + 1)


def test_a_store_that_does_not_fit_says_what_differs(tmp_path, monkeypatch, capsys):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    folder = tmp_path / "store"
    utterances[0].audio.write_bytes(b"")  # a problem is not a difference

    def said(some, dtype=np.float32):
        FeatureStore.build(folder, some, label="features of train", dtype=dtype)
        lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "mini_pkd" in line]
        assert all(line.startswith("mini_pkd: features of train are computed again, because ") for line in lines)
        assert all(line.endswith(f" ({folder})") for line in lines)
        return [line.split("because ")[1].removesuffix(f" ({folder})") for line in lines]

    assert said(utterances) == said(utterances) == []
    other = [Utterance(u.id, u.speaker, u.audio, u.text + " MORE" * (i > 8)) for i, u in enumerate(utterances)]
    assert said(other[1:]) == ["utterances are others than before: 3 changed in their text"]
    assert said(other[3:]) == ["utterances are others than before: 2 gone"]
    assert said(other[2:-1]) == ["utterances are others than before: 1 new, 1 gone"]
    assert said(other[2:-1], np.float16) == ["they are float32 and float16 is asked for"]
    tone(other[2].audio, 5000, seed=99)
    again = "audio files have another size or date than before, or features are computed in another way now"
    assert said(other[2:-1], np.float16) == [again]
    (folder / "index.json").write_text("{")
    assert said(other[2:-1], np.float16) == ["their index cannot be read: damaged or cut short"]


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


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_the_rows_is_noticed_at_the_first_touch(tmp_path, seed):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    for dtype in (np.float32, np.float16):
        store = FeatureStore.build(tmp_path / "store", utterances, dtype=dtype)
        path, row_bytes = tmp_path / "store" / "rows.bin", 40 * store.dtype.itemsize
        data = bytearray(path.read_bytes())
        bit = int(np.random.default_rng(seed).integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        store = FeatureStore.build(tmp_path / "store", utterances, dtype=dtype)  # opened: no row was looked at
        hit = int(np.searchsorted(store.offsets, bit // 8 // row_bytes, side="right")) - 1
        for i, u in enumerate(utterances):
            if i == hit:
                with pytest.raises(UserError, match=rf"rows.bin is damaged where utterance {u.id} lies: delete"):
                    store[i]
            else:
                assert len(store[i]) == store.lengths[i]
        with pytest.raises(UserError, match="damaged"):
            collate(store, list(range(len(store))), [[]] * len(store))
        shutil.rmtree(tmp_path / "store")


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_in_the_index_is_noticed(tmp_path, seed):
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    FeatureStore.build(tmp_path / "store", utterances)
    path = tmp_path / "store" / "index.json"
    data = bytearray(path.read_bytes())
    bit = int(np.random.default_rng(seed).integers(8 * len(data)))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    with pytest.raises(UserError, match="no complete feature store"):
        FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


def test_a_store_without_checksums_is_built_again(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    FeatureStore.build(tmp_path / "store", utterances)
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_text())
    del index["crc32"], index["checksums"]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="no complete feature store"):
        FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


def places(value):
    """Every (container, key) below a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def mutate(value, rng):
    """One structural change somewhere in a JSON value, in place where that is possible."""
    odd = [None, True, -1, 0, 3, 1e300, float("nan"), float("inf"), -(2**63), 2**64, 10**400, "", "\ud800", "x" * 999,
           [], {}, [[]], {"crc32": 0}, [1, "a", None], json.loads("[" * 90 + "]" * 90)]  # fmt: skip
    found = list(places(value))
    container, key = found[rng.integers(len(found))]
    kind = rng.integers(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(key, container[key])
    elif kind == 2 and isinstance(container[key], int | float):
        container[key] = [-container[key] - 1, float(container[key]), int(container[key]) * 10**12][rng.integers(3)]
    elif kind == 3:
        container[key] = [container[key]]
    elif kind == 4:
        return [value, [value], "text", 7, None, [], {}][rng.integers(7)]
    else:
        container[key] = odd[rng.integers(len(odd))]
    return value


def sealed(content):
    """With a checksum that is right: damage that only the look at its shape can find."""
    return feature_store_files.seal(content) if isinstance(content, dict) else json.dumps(content) + "\n"


@pytest.mark.parametrize("seal", [False, True])
def test_no_mutation_of_the_index_is_more_than_a_sentence(tmp_path, seal):
    """200 times: opening gives the store or a UserError, and a build the right store."""
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=1, chapters=1))
    utterances[1].audio.write_bytes(b"")
    good = FeatureStore.build(tmp_path / "store", utterances)
    path = tmp_path / "store" / "index.json"
    text = path.read_text()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        content = json.loads(text)
        if seal:
            del content["crc32"]
        content = mutate(content, rng)
        line = sealed(content) if seal else json.dumps(content) + "\n"
        path.write_text(line if seed % 10 else line[: rng.integers(len(line))])
        with contextlib.suppress(UserError):  # anything else fails the test
            store = FeatureStore(tmp_path / "store")
            assert seal or path.read_text() == text
            for i in range(len(store)):
                with contextlib.suppress(UserError):
                    assert store[i].shape == (store.lengths[i], 40)
        if not seal:  # a forger with a right checksum may write other words, and then gets them
            store = FeatureStore.build(tmp_path / "store", utterances)
            assert_store_is_right(store, [utterances[0], utterances[2]])
            assert store.problems == good.problems and path.read_text() == text


@pytest.mark.parametrize("seal", [False, True])
def test_no_mutation_of_the_journal_is_more_than_a_sentence(tmp_path, monkeypatch, seal):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=1, chapters=1))
    utterances[1].audio.write_bytes(b"")
    FeatureStore.build(tmp_path / "whole", utterances)
    monkeypatch.setattr(feature_store, "COMMIT_BYTES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "write_text_atomic", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            FeatureStore.build(tmp_path / "half", utterances)
    lines = (tmp_path / "half" / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 3
    for seed in range(200):
        rng = np.random.default_rng(seed)
        place = tmp_path / f"store{seed}"
        shutil.copytree(tmp_path / "half", place)
        changed, which = list(lines), rng.integers(len(lines))
        content = json.loads(lines[which])
        if seal:
            del content["crc32"]
        content = mutate(content, rng)
        line = sealed(content)[:-1] if seal else json.dumps(content)
        changed[which] = line if seed % 10 else line[: rng.integers(len(line))]
        (place / "journal.jsonl").write_text("\n".join(changed) + "\n")
        with contextlib.suppress(UserError):
            store = FeatureStore.build(place, utterances)
            assert len(store) <= 3
        if not seal:
            for name in ("rows.bin", "index.json"):
                assert (place / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        shutil.rmtree(place)


@pytest.mark.parametrize(
    "change",
    [
        {"lengths": lambda x: [x[0] + 5, x[1] - 5 - x[2], 2 * x[2]]},  # the same sum
        {"lengths": lambda x: [float(n) for n in x]},
        {"lengths": lambda x: [x[0], 0, x[1] + x[2]]},
        {"checksums": lambda x: x[:2]},
        {"sum": lambda x: [float("nan"), *x[1:]]},
        {"squares": lambda x: [float("inf"), *x[1:]]},
        {"sum": lambda x: [0, *x[1:]]},
        {"squares": lambda x: x[1:]},
        {"ids": lambda x: [*x, "four"]},
        {"dtype": lambda x: "float64"},
        {"dtype": lambda x: "object"},
        {"fingerprint": lambda x: None},
        {"problems": lambda x: [["a", "b", "c"]]},
    ],
    ids=str,
)
def test_every_clause_of_the_look_at_an_index(tmp_path, change):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=1, chapters=1))
    FeatureStore.build(tmp_path / "store", utterances)
    path = tmp_path / "store" / "index.json"
    index = json.loads(path.read_text())
    del index["crc32"]
    ((key, changed),) = change.items()
    path.write_text(sealed({**index, key: changed(index[key])}))
    with pytest.raises(UserError, match="no complete feature store"):
        FeatureStore(tmp_path / "store")
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


def test_a_journal_of_more_utterances_than_there_are(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=1, chapters=1))
    entry = {"lengths": [0] * 7, "checksums": [0] * 7, "problems": [], "sum": [0.0] * 40, "squares": [0.0] * 40}
    header = {"fingerprint": feature_store._fingerprint(utterances, np.float32)}
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "rows.bin").write_bytes(b"")
    (tmp_path / "store" / "journal.jsonl").write_text(sealed(header) + sealed(entry))
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


def test_links_in_the_folder_are_not_written_through(tmp_path):
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    precious = tmp_path / "precious"
    for name in ("lock", "rows.bin", "journal.jsonl", "index.json"):
        precious.write_text("precious")
        place = tmp_path / name
        place.mkdir()
        (place / name).symlink_to(precious)
        try:
            store = FeatureStore.build(place, utterances)
        except UserError as error:
            assert f"{place / name} is a symbolic link" in str(error)
        else:  # it made room for a file of its own
            assert_store_is_right(store, utterances)
            assert not (place / name).is_symlink()
        assert precious.read_text() == "precious", name
        (place / name).unlink()
        assert_store_is_right(FeatureStore.build(place, utterances), utterances)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["lock", "rows.bin", "journal.jsonl", "index.json"])
def test_a_pipe_in_place_of_a_file_keeps_nobody_waiting(tmp_path, name):
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / name)
    with contextlib.suppress(UserError):
        assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)


# --- killed, and side by side ----------------------------------------------------------------------------------------


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
    journal, rows = place / "journal.jsonl", place / "rows.bin"
    real = feature_workers._extract

    def build_until(path):
        """Build, but die when this path is asked for; how many utterances were computed."""
        computed = []

        def extract(paths):
            if paths == [path]:
                raise Stop
            computed.extend(paths)
            return real(paths)

        monkeypatch.setattr(feature_workers, "_extract", extract)
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
    real, stop = feature_workers._extract, str(utterances[int(rng.integers(6, 12))].audio)

    def extract(paths):
        if paths == [stop]:
            raise Stop
        return real(paths)

    monkeypatch.setattr(feature_workers, "_extract", extract)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    monkeypatch.setattr(feature_workers, "_extract", real)
    FeatureStore.build(tmp_path / "store", utterances)
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "store" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_before_a_rename_loses_nothing(tmp_path, monkeypatch, rename):
    """The rows are all there when a build is killed while it puts its files in place: none is computed again."""
    utterances, _ = read_part(make_part(tmp_path / "train"))
    renames, real = [], os.replace

    def replace(*paths):
        renames.append(paths)
        if len(renames) == rename:
            raise Stop
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with contextlib.suppress(Stop):
            FeatureStore.build(tmp_path / "store", utterances)
    monkeypatch.setattr(feature_workers, "_extract", lambda paths: pytest.fail("computed again"))
    assert_store_is_right(FeatureStore.build(tmp_path / "store", utterances), utterances)
    assert not (tmp_path / "store" / "journal.jsonl").exists()


def test_a_second_process_waits_with_a_bar_and_opens_what_the_first_has_built(tmp_path, monkeypatch, capsys):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    place, found = tmp_path / "store", []
    monkeypatch.setattr(feature_store, "COMMIT_SECONDS", 0)
    real, first = feature_workers._extract, threading.current_thread()
    waiting = threading.Thread(
        target=lambda: found.append(FeatureStore.build(place, utterances, label="features of train"))
    )

    def extract(paths):
        assert threading.current_thread() is first, "both compute"
        if paths == [str(utterances[5].audio)]:
            waiting.start()
            shows("5/12")
        if paths == [str(utterances[9].audio)]:
            shows("9/12")
        return real(paths)

    def shows(count):
        seen, deadline = "", time.time() + 30
        while count not in seen and time.time() < deadline:
            time.sleep(0.05)
            seen += capsys.readouterr().err
        assert "features of train, by another process" in seen and count in seen and found == []

    monkeypatch.setattr(feature_workers, "_extract", extract)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # else the bar moves every ten seconds
    FeatureStore.build(place, utterances)
    waiting.join(30)
    assert_store_is_right(found[0], utterances)


def test_waiting_for_a_process_that_dies_continues_its_build(tmp_path):
    """And Ctrl-C ends the waiting."""
    utterances, _ = read_part(make_part(tmp_path / "train", chapters=1))
    place, found = tmp_path / "store", []
    place.mkdir()
    waiting = threading.Thread(target=lambda: found.append(FeatureStore.build(place, utterances)))
    with Lock(place) as lock:
        assert lock.take()
        waiting.start()
        script = f"""if True:
            import signal
            from mini_pkd.corpus_folder import read_part
            from mini_pkd.feature_store import FeatureStore
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("here", flush=True)
            FeatureStore.build({str(place)!r}, read_part({str(tmp_path / "train")!r})[0])
            """
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.readline() == b"here\n"
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1].endswith(b"KeyboardInterrupt\n")
        assert found == [] and not (place / "rows.bin").exists()
    waiting.join(30)
    assert_store_is_right(found[0], utterances)


def test_an_interrupted_build_of_another_corpus_is_not_continued(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))
    monkeypatch.setattr(feature_store, "COMMIT_BYTES", 1)
    real, calls = feature_workers._extract, []

    def extract_and_stop(paths):
        calls.append(paths)
        if len(calls) == 6:
            raise Stop
        return real(paths)

    monkeypatch.setattr(feature_workers, "_extract", extract_and_stop)
    with pytest.raises(Stop):
        FeatureStore.build(tmp_path / "store", utterances)
    backwards = utterances[::-1]
    assert_store_is_right(FeatureStore.build(tmp_path / "store", backwards), backwards)


def test_processes_give_the_same_bytes(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train", speakers=3, utterances=9))
    utterances[5].audio.write_bytes(b"")
    FeatureStore.build(tmp_path / "one", utterances, workers=1)
    monkeypatch.setattr(feature_workers, "SMALL_PART", 0)
    monkeypatch.setattr(feature_workers, "CHUNK", 4)
    before = dict(os.environ)
    FeatureStore.build(tmp_path / "two", utterances, workers=2)
    assert dict(os.environ) == before
    for name in ("rows.bin", "index.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_broken_workers_are_replaced_by_this_process(tmp_path, monkeypatch):
    utterances, _ = read_part(make_part(tmp_path / "train"))

    def breaks(paths, workers):
        yield from feature_workers._extract(paths[:5])
        raise feature_workers.BrokenProcessPool("killed")

    monkeypatch.setattr(feature_workers, "SMALL_PART", 0)
    monkeypatch.setattr(feature_workers, "_extract_in_processes", breaks)
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
        from mini_pkd import feature_store, feature_workers
        feature_workers.SMALL_PART, feature_workers.CHUNK, feature_store.COMMIT_BYTES = 0, 1, 1
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
    with Lock(tmp_path / "store") as lock:
        assert not lock.take()
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
    entries = journal.read_text().rpartition("\n")[0].splitlines()[1:]
    done = sum(len(json.loads(entry)["lengths"]) for entry in entries)
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
