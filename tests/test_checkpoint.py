"""Checkpoints survive to the bit, and every way of breaking a file ends in one sentence."""

import errno
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mini_pkd import UserError, checkpoint

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1.7976931348623157e308])


def some_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "encoder.blocks.0.attention/weight": rng.standard_normal((3, 5)).astype(np.float32),
        "bias": rng.standard_normal(7),
        "steps": rng.integers(-(2**62), 2**62, size=(2, 3)),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3.5, np.float32),
        "flags": rng.integers(0, 2, 9).astype(bool),
        "special": SPECIAL,
        "fortran": np.asfortranarray(rng.standard_normal((4, 3))),
        "strided": rng.standard_normal((6, 6))[::2, 1::2],
        "big endian": np.arange(4, dtype=">i4"),
        # names that np.savez and np.load trip over when they are used as they are
        "file": np.arange(3),
        "allow_pickle": np.arange(2),
        "arr_0": np.arange(4),
        "meta": np.arange(5),
        "x": np.array([1.0]),
        "x.npy": np.array([2.0]),
        "../up": np.array([3.0]),
        'Grösse ▁ \n "q"': np.array([4.0]),
        "": np.array([5.0]),
    }


def assert_same(arrays, loaded):
    assert list(arrays) == list(loaded)  # order as well
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype, name
        assert loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == array.tobytes(), name  # bytes: nan and -0.0 count


META = {"epoch": 3, "loss": 0.1, "seed": 2**70, "sizes": [1, 2], "name": "S3 ▁", "no": None, "d": {"a": True}}


@pytest.mark.parametrize("seed", range(5))
def test_survives_to_the_bit(tmp_path, seed):
    arrays = some_arrays(seed)
    path = tmp_path / "model.npz"
    checkpoint.save(path, arrays, META)
    loaded, meta = checkpoint.load(path)
    assert_same(arrays, loaded)
    assert meta == META
    assert os.listdir(tmp_path) == ["model.npz"]
    for array in loaded.values():
        assert array.flags.writeable  # the optimiser will write into them


def test_no_arrays_and_no_meta(tmp_path):
    checkpoint.save(str(tmp_path / "m"), {}, {})  # a name without .npz stays as it is
    assert os.listdir(tmp_path) == ["m"]
    assert checkpoint.load(str(tmp_path / "m")) == ({}, {})


def test_same_input_gives_same_bytes(tmp_path):
    checkpoint.save(tmp_path / "a", some_arrays(), META)
    checkpoint.save(tmp_path / "b", some_arrays(), META)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_meta_takes_numpy_numbers(tmp_path):
    meta = {"i": np.int64(3), "f": np.float64(0.1), "a": np.arange(2), "t": (1,)}
    checkpoint.save(tmp_path / "m", {}, meta)
    assert checkpoint.load(tmp_path / "m")[1] == {"i": 3, "f": 0.1, "a": [0, 1], "t": [1]}


def test_programmers_errors_leave_nothing_behind(tmp_path):
    with pytest.raises(TypeError, match="JSON cannot store"):
        checkpoint.save(tmp_path / "m", {}, {"object": object()})
    for array in (np.array([None]), np.array(["text"]), np.zeros(2, "f4,i4"), np.zeros(2, "M8[s]")):
        with pytest.raises(TypeError, match="numbers only"):
            checkpoint.save(tmp_path / "m", {"w": array}, {})
    with pytest.raises(ValueError, match="the most that load accepts"):
        checkpoint.save(tmp_path / "m", {}, {"text": "x" * checkpoint.MAX_META})
    assert os.listdir(tmp_path) == []


def test_overwrites_and_makes_the_folder(tmp_path):
    path = tmp_path / "runs" / "S1" / "model.npz"
    checkpoint.save(path, {"w": np.zeros(2)}, {"step": 1})
    path.with_name("model.npz.tmp").write_bytes(b"left behind by a kill -9")
    checkpoint.save(path, {"w": np.ones(2)}, {"step": 2})
    assert checkpoint.load(path)[1] == {"step": 2}
    assert os.listdir(path.parent) == ["model.npz"]


@pytest.mark.parametrize("trap", ["symlink_to", "hardlink_to", "dangling", "pipe"])
def test_what_stands_at_the_temporary_name_is_not_written_through(tmp_path, monkeypatch, trap):
    """Somebody else's link must not lead a save into another file, and a pipe must not make it wait."""
    path, victim, temporary = tmp_path / "m", tmp_path / "victim", tmp_path / "m.tmp"
    victim.write_text("precious")
    if trap == "pipe":
        os.mkfifo(temporary)
        reader = os.open(temporary, os.O_RDONLY | os.O_NONBLOCK)  # without the mend: a failure, and no waiting for ever
    elif trap == "dangling":
        temporary.symlink_to(tmp_path / "born by a save")
    else:
        getattr(temporary, trap)(victim)
    checkpoint.write_text_atomic(path, "new")
    if trap == "pipe":
        os.close(reader)
    assert path.read_text() == "new" and not path.is_symlink()
    assert victim.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["m", "victim"]
    # and one that appears just before the file is opened is refused
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda self, **how: (unlink(self, **how), temporary.symlink_to(victim)))
    with pytest.raises(UserError, match="could not be written"):
        checkpoint.write_text_atomic(path, "newer")
    assert victim.read_text() == "precious" and path.read_text() == "new"


# --- broken files ----------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(UserError) as caught:
        checkpoint.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and ";" in sentence
    return sentence


def test_every_flipped_bit_is_caught_or_harmless(tmp_path):
    """A bit of the zip's own bookkeeping (a date, an attribute) may flip unnoticed: the arrays are right."""
    arrays = {"w": np.arange(4, dtype=np.float32), "b/c": np.zeros((0, 2)), "s": np.array(7)}
    meta = {"epoch": 3}
    path = tmp_path / "m"
    checkpoint.save(path, arrays, meta)
    data = path.read_bytes()
    assert data.count(arrays["w"].tobytes()) == 1
    payload = data.find(arrays["w"].tobytes())
    harmless = 0
    bits = np.random.default_rng(0).permutation(8 * len(data))[:600].tolist()
    # all of one array and of the .npy header before it
    bits += range(8 * (payload - 128), 8 * (payload + arrays["w"].nbytes))
    for bit in bits:
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            loaded, loaded_meta = checkpoint.load(path)
        except UserError:
            continue
        harmless += 1
        assert not payload <= bit // 8 < payload + arrays["w"].nbytes
        assert_same(arrays, loaded)
        assert loaded_meta == meta
    assert harmless < len(bits) / 3


def test_a_header_that_shortens_its_array_is_caught(tmp_path):
    """np.load on the whole file stops after 1000 numbers, before the CRC is looked at (numpy 2.4)."""
    path = tmp_path / "m"
    checkpoint.save(path, {"w": np.arange(5000.0)}, {})
    data = path.read_bytes()
    assert data.count(b"(5000,)") == 1
    path.write_bytes(data.replace(b"(5000,)", b"(1000,)"))
    assert "damaged" in refused(path)


def test_every_truncation_is_caught(tmp_path):
    path = tmp_path / "m"
    checkpoint.save(path, {"w": np.arange(4.0)}, {"epoch": 3})
    data = path.read_bytes()
    for length in range(0, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            checkpoint.load(path)
    path.write_bytes(data[: len(data) // 2])
    assert "damaged or cut short" in refused(path)


def test_missing_foreign_and_newer_files(tmp_path):
    assert "there is no checkpoint at" in refused(tmp_path / "nowhere")
    assert "could not be opened" in refused(tmp_path)  # a folder
    for name, data in {"empty": b"", "text": b"epoch,loss\n1,2\n", "random": os.urandom(1000)}.items():
        (tmp_path / name).write_bytes(data)
        assert "is not a mini_pkd checkpoint" in refused(tmp_path / name)
    np.savez(tmp_path / "other.npz", w=np.zeros(3))
    assert "not a mini_pkd checkpoint" in refused(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", meta=np.frombuffer(b'{"format": "else"}', np.uint8))
    assert "not a mini_pkd checkpoint" in refused(tmp_path / "other.npz")
    header = b'{"format": "mini_pkd checkpoint", "version": 99, "names": [], "meta": {}}'
    np.savez(tmp_path / "newer.npz", meta=np.frombuffer(header, np.uint8))
    assert "version 99" in refused(tmp_path / "newer.npz")


# --- hostile files -----------------------------------------------------------------------------------


def entry(array):
    """An array as the .npy that np.savez would write."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header_of(names="w", **changes):
    """The entry `meta` of a checkpoint with these arrays."""
    header = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "names": names, "meta": {}} | changes
    return entry(np.frombuffer(json.dumps(header).encode(), np.uint8))


def zipped(path, *entries, compression=zipfile.ZIP_STORED):
    """A zip of (name, bytes) by hand; `np.savez` would be too well-behaved."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def refused_cheaply(path):
    """... with no more memory than a few times the file."""
    tracemalloc.start()
    try:
        sentence = refused(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * path.stat().st_size + 2**22
    finally:
        tracemalloc.stop()
    assert "damaged" in sentence
    return sentence


def test_the_hand_made_checkpoint_of_these_tests_loads(tmp_path):
    zipped(tmp_path / "m", ("meta.npy", header_of()), ("0 w.npy", entry(np.arange(3))))
    assert_same({"w": np.arange(3)}, checkpoint.load(tmp_path / "m")[0])


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    """Compressed entries: the array, the meta, or both; and one that only claims to be stored."""
    zeros = entry(np.zeros(2**23, np.float32))  # 32 MiB become 32 kB
    zipped(tmp_path / "m", ("meta.npy", header_of()), ("0 w.npy", zeros), compression=zipfile.ZIP_DEFLATED)
    refused_cheaply(tmp_path / "m")
    text = entry(np.frombuffer(b'{"a": ' + b" " * 2**23 + b"0}", np.uint8))
    zipped(tmp_path / "m", ("meta.npy", text), compression=zipfile.ZIP_DEFLATED)
    refused_cheaply(tmp_path / "m")
    zipped(tmp_path / "m", ("meta.npy", header_of()), ("0 w.npy", entry(np.zeros(1000))))
    data = (tmp_path / "m").read_bytes()
    where = data.rindex(b"PK\x01\x02")  # w's entry in the directory; its sizes stand 20 bytes further
    (tmp_path / "m").write_bytes(data[: where + 20] + struct.pack("<II", 2**31, 2**31) + data[where + 28 :])
    refused_cheaply(tmp_path / "m")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    """A second name for the same 8 MB: the directory's two offsets are equal."""
    data = entry(np.zeros(10**6))
    zipped(tmp_path / "m", ("meta.npy", header_of("vw")), ("0 v.npy", data), ("1 w.npy", data))
    good = (tmp_path / "m").read_bytes()
    first, second = (good.index(name, good.index(b"PK\x01\x02")) - 46 for name in (b"0 v.npy", b"1 w.npy"))
    offset = good[first + 42 : first + 46]
    (tmp_path / "m").write_bytes(good[: second + 42] + offset + good[second + 46 :])
    with zipfile.ZipFile(tmp_path / "m") as archive:
        assert [i.header_offset for i in archive.infolist()].count(int.from_bytes(offset, "little")) == 2
        with pytest.raises(ValueError, match="overlapping"):
            checkpoint._check_entries(archive, 10**9)
    refused(tmp_path / "m")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_duplicates_and_entries_that_the_header_does_not_know(tmp_path):
    w = ("0 w.npy", entry(np.zeros(3)))
    for entries in (
        [("meta.npy", header_of()), w, w],
        [("meta.npy", header_of()), w, ("1 v.npy", w[1])],
        [("meta.npy", header_of()), ("0 v.npy", w[1])],
        [("meta.npy", header_of("ww")), w, ("1 w.npy", w[1])],
        [("meta.npy", header_of(meta=[1])), w],
        [("meta.npy", header_of(names=5)), w],
        [("meta.npy", header_of(version="1\n2")), w],
        [("meta.npy", entry(np.frombuffer(b"[" * 10**5, np.uint8))), w],
    ):
        zipped(tmp_path / "m", *entries)
        refused_cheaply(tmp_path / "m")


def npy(header, data=b""):
    """An .npy with this text as its header."""
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_array_headers_that_do_not_fit_their_bytes(tmp_path):
    shapes = "(1000000000,)", "(1000000000000,)", "(5,)", "(3,)", "(-2, -2)", "(4.0,)", "[4]", "('4',)", "()"
    shapes += (f"({2**70}, 0)",)
    entries = [npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n", b"x" * 16) for shape in shapes]
    for descr in ("'|O'", "'<U1'", "'|V4'", "'<M8[s]'", "[('a', '<f4')]", "'<f999999999'", "5"):
        entries.append(npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': (4,)}}\n", b"x" * 16))
    entries.append(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}\n", b"x" * 16))
    entries += [npy("{"), npy("{}"), npy("[" * 5000), b"", b"\x93NUMPY", entry(np.array([None], object))]
    inner = io.BytesIO()
    np.savez_compressed(inner, w=np.zeros(10**6))  # np.load would open an archive inside the archive
    entries.append(inner.getvalue())
    for data in entries:
        zipped(tmp_path / "m", ("meta.npy", header_of()), ("0 w.npy", data))
        refused_cheaply(tmp_path / "m")
    good = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}\n", b"x" * 16)
    zipped(tmp_path / "m", ("meta.npy", header_of()), ("0 w.npy", good))
    assert checkpoint.load(tmp_path / "m")[0]["w"].tobytes() == b"x" * 16


def test_a_huge_meta_is_refused_before_it_is_parsed(tmp_path):
    """17 MB of JSON that would become 400 MB of lists."""
    text = b'{"a": [' + b"[]," * (checkpoint.MAX_META // 3) + b"0]}"
    zipped(tmp_path / "m", ("meta.npy", entry(np.frombuffer(text, np.uint8))))
    tracemalloc.start()
    refused(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "m")
    pipe = os.open(tmp_path / "m", os.O_RDWR)
    os.write(pipe, b"0123")  # without the mend this test fails and does not hang
    assert "is a pipe" in refused(tmp_path / "m")
    os.close(pipe)


# --- full disks, interruptions ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_full_disk(tmp_path, monkeypatch, call):
    path = tmp_path / "m"
    checkpoint.save(path, {"w": np.zeros(2)}, {"step": 1})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "open":
        monkeypatch.setattr("builtins.open", full)
    elif call == "write":
        monkeypatch.setattr(np, "savez", lambda file, **arrays: (file.write(b"half"), full()))
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match="the disk is full: .*m could not be written"):
        checkpoint.save(path, {"w": np.ones(2)}, {"step": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_device_that_is_really_full(tmp_path, monkeypatch, size):
    """The temporary file is /dev/full: the kernel itself says ENOSPC, not a monkey."""
    path = tmp_path / "results.json"
    checkpoint.write_text_atomic(path, "old")
    real = open
    monkeypatch.setattr("builtins.open", lambda path, mode: real("/dev/full", "wb"))
    with pytest.raises(UserError, match="the disk is full"):
        checkpoint.write_text_atomic(path, "n" * size)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_disk_that_fills_anywhere_in_a_save(tmp_path):
    """The kernel refuses to let the file grow beyond a limit: real write errors deep inside the zip."""
    program = """
import os, resource, sys
import numpy as np
from mini_pkd import UserError, checkpoint
path = sys.argv[1]
checkpoint.save(path, {"w": np.zeros(2)}, {"step": 1})
size = 401_000
for limit in [50, 1_000, 5_000, 100_000, 200_000, 399_000, 400_000, 400_500]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoint.save(path, {"x": np.ones(25_000), "y": np.ones(25_000)}, {"step": 2})
        status = "saved"
    except UserError as error:
        status = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert "could not be written (File too large)" in status, (limit, status)
    assert os.listdir(os.path.dirname(path)) == ["m"], limit
    assert checkpoint.load(path)[1] == {"step": 1}, limit
"""
    command = [sys.executable, "-c", program, str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no "Exception ignored in" chatter either


def test_ctrl_c_in_the_middle(tmp_path, monkeypatch):
    path = tmp_path / "m"
    checkpoint.save(path, {"w": np.zeros(2)}, {"step": 1})

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"w": np.ones(2)}, {"step": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m"]
    assert checkpoint.load(path)[1] == {"step": 1}


def test_the_bytes_are_synced_before_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    checkpoint.write_text_atomic(tmp_path / "t", "x")
    assert calls == ["fsync", "replace", "fsync"]


def test_the_version_before_is_kept(tmp_path, monkeypatch):
    """... at every instant: killed between the two renames, it is the only one."""
    newer, older = paths = [tmp_path / "m", tmp_path / "m.before"]
    assert checkpoint.load_newest(paths) is None
    for step in (1, 2, 3):
        checkpoint.save(newer, {"w": np.full(3, step)}, {"step": step}, keep=older)
        assert checkpoint.load_newest(paths)[1] == {"step": step}
    assert checkpoint.load(older)[1] == {"step": 2} and sorted(os.listdir(tmp_path)) == ["m", "m.before"]
    renames, replace = [], os.replace

    def killed(source, to):
        renames.append(to)
        if len(renames) == 2:
            raise KeyboardInterrupt
        replace(source, to)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(newer, {"w": np.full(3, 4)}, {"step": 4}, keep=older)
    assert renames == [older, newer] and checkpoint.load_newest(paths)[1] == {"step": 3}


def test_the_newest_that_is_whole(tmp_path):
    newer, older = paths = [tmp_path / "m", tmp_path / "m.before"]
    for step in (1, 2):
        checkpoint.save(newer, {"w": np.full(100, step)}, {"step": step}, keep=older)
    whole, told = newer.read_bytes(), []
    newer.write_bytes(whole[:-100])
    for headers_only in (False, True):
        arrays, meta = checkpoint.load_newest(paths, told.append, headers_only)
        assert meta == {"step": 1} and bool(arrays) != headers_only
    assert [line.partition(" is damaged or cut short")[0] for line in told] == [f"the checkpoint {newer}"] * 2
    assert told[0].endswith(": going on from the one before it, m.before")
    older.write_bytes(b"PK")
    with pytest.raises(UserError, match="m is damaged"):
        checkpoint.load_newest(paths)


def test_text(tmp_path):
    text = "line\r\n▁ THE\n\n"
    checkpoint.write_text_atomic(tmp_path / "t", text)
    assert (tmp_path / "t").read_bytes().decode("utf-8") == text


def test_unwritable_places(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path in [tmp_path / "file" / "m", tmp_path / "folder"]:
        with pytest.raises(UserError, match="could not be written"):
            checkpoint.write_text_atomic(path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
