"""Checkpoints survive to the bit, and every way of breaking a file ends in one sentence."""

import errno
import os
import subprocess
import sys

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
        "Grösse ▁ \n \"q\"": np.array([4.0]),
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
    with pytest.raises(TypeError, match="Python objects"):
        checkpoint.save(tmp_path / "m", {"w": np.array([None])}, {})
    assert os.listdir(tmp_path) == []


def test_overwrites_and_makes_the_folder(tmp_path):
    path = tmp_path / "runs" / "S1" / "model.npz"
    checkpoint.save(path, {"w": np.zeros(2)}, {"step": 1})
    path.with_name("model.npz.tmp").write_bytes(b"left behind by a kill -9")
    checkpoint.save(path, {"w": np.ones(2)}, {"step": 2})
    assert checkpoint.load(path)[1] == {"step": 2}
    assert os.listdir(path.parent) == ["model.npz"]


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
    assert "no mini_pkd checkpoint" in refused(tmp_path / "other.npz")
    np.savez(tmp_path / "other.npz", meta=np.frombuffer(b'{"format": "else"}', np.uint8))
    assert "no mini_pkd checkpoint" in refused(tmp_path / "other.npz")
    header = b'{"format": "mini_pkd checkpoint", "version": 99, "names": [], "meta": {}}'
    np.savez(tmp_path / "newer.npz", meta=np.frombuffer(header, np.uint8))
    assert "version 99" in refused(tmp_path / "newer.npz")


def test_pickles_are_never_loaded(tmp_path):
    header = b'{"format": "mini_pkd checkpoint", "version": 1, "names": ["w"], "meta": {}}'
    np.savez(tmp_path / "m.npz", **{"meta": np.frombuffer(header, np.uint8), "0 w": np.array([None], object)})
    assert "damaged" in refused(tmp_path / "m.npz")


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
def test_a_device_that_is_really_full(tmp_path, size):
    """The temporary name is a link to /dev/full: the kernel itself says ENOSPC, not a monkey."""
    path = tmp_path / "results.json"
    checkpoint.write_text_atomic(path, "old")
    (tmp_path / "results.json.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        checkpoint.write_text_atomic(path, "n" * size)
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
