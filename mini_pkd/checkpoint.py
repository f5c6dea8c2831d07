"""Crash-safe files: a checkpoint is either the old one or the new one, whole, at every instant.

A run may be stopped by Ctrl-C, a power cut or a full disk while it is writing.  Hence the old recipe:

    1. write everything under a temporary name in the same folder    (a rename cannot cross disks)
    2. flush, fsync: the bytes are on the disk, not in some cache    (else step 3 may survive a power
    3. os.replace: one atomic rename over the old file                cut that the bytes do not)
    4. fsync the folder: the rename itself is on the disk

Kill the process before step 3 and the old file stands untouched; after it, the new one is there.

A checkpoint holds named arrays and a JSON-able dictionary `meta` (step, epoch, sizes, the vocabulary's
fingerprint).  It is a plain uncompressed .npz, that is a zip of .npy files: `np.load` opens it, nothing
is pickled, so loading a stranger's file cannot run a stranger's code, and the zip's CRC over every
array finds a flipped bit.  The entries are

    meta              uint8: JSON text {"format", "version", "names", "meta"}
    0 encoder.weight  the arrays in order; the true names stand in "names", for .npz keys have traps of
    1 encoder.bias    their own (np.savez takes a key `file` for its own argument; `x` and `x.npy` clash)

Left out: compression (measured 60 times slower to write, for 7 % of the size) and sharding.
"""

import errno
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mini_pkd import UserError

FORMAT = "mini_pkd checkpoint"
VERSION = 1


# ---------------------------------------------------------------------------------------------------
# Atomic writing


def write_file_atomic(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write(file)` fill a binary file that appears at `path` only once it is complete.

    The temporary name is always `path` + ".tmp": what a `kill -9` leaves behind is overwritten by the
    next save instead of piling up.  The price: two processes must not write the same path at once.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # BaseException: Ctrl-C in the middle of a write must clean up as well
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(_cannot_write(path, error)) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is as safe as it gets
        with suppress(OSError):  # some network disks refuse to sync a folder; the file itself is safe
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, line ends as they are: the old file or the new one, never half of one."""
    write_file_atomic(path, lambda file: file.write(text.encode("utf-8")))


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full: {path} could not be written (an older version of it is untouched); "
            "free some space and start the same command again"
        )
    reason = error.strerror or str(error)
    return f"{path} could not be written ({reason}); check the folder and its permissions"


# ---------------------------------------------------------------------------------------------------
# Checkpoints


def save(path: str | Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write named arrays and a JSON-able `meta` to `path`, atomically.

    Arrays of any shape (also 0-d and empty) and any dtype but object come back to the bit.  `meta`
    goes through JSON: tuples come back as lists, keys as strings, numpy scalars as plain numbers.
    """
    entries = {}
    for i, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array)
        if array.dtype.hasobject:  # np.savez would quietly pickle it, and load would refuse to read it
            raise TypeError(f"array {name!r} holds Python objects; a checkpoint stores numbers only")
        entries[f"{i} {name}"] = array
    header = {"format": FORMAT, "version": VERSION, "names": list(arrays), "meta": dict(meta)}
    text = json.dumps(header, default=_plain)
    entries["meta"] = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
    write_file_atomic(path, lambda file: np.savez(file, **entries))


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `save` wrote: (arrays, meta).  Anything else is a UserError of one sentence."""
    path = Path(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint at {path}; check the path or train the model") from None
    except OSError as error:
        raise UserError(f"{path} could not be opened ({error.strerror}); check the path") from error
    with file:
        start = file.read(4)
        if not start or start != b"PK\x03\x04"[: len(start)]:  # how every zip begins
            raise UserError(f"{path} is not a mini_pkd checkpoint; give a file that the training wrote")
        # A damaged zip fails in a dozen ways (BadZipFile, struct.error, zlib.error, EOFError, RuntimeError
        # for a flipped "encrypted" flag ...), all of which mean the same to the user.
        try:
            with zipfile.ZipFile(file) as archive:
                files = set(archive.namelist())
                header = _read_header(archive) if "meta.npy" in files else {}
                if header.get("format") == FORMAT and header["version"] == VERSION:
                    names = header["names"]
                    arrays = {name: _read_array(archive, f"{i} {name}") for i, name in enumerate(names)}
                    if len(files) != len(names) + 1:
                        raise ValueError("entries that the header does not know")
                    return arrays, header["meta"]
        except Exception as error:
            raise UserError(
                f"the checkpoint {path} is damaged or cut short ({type(error).__name__}); "
                "delete it to train again, or bring back a copy"
            ) from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is some archive, no mini_pkd checkpoint; give a file that training wrote")
    raise UserError(
        f"the checkpoint {path} has format version {header['version']} and this program reads version "
        f"{VERSION}; load it with the mini_pkd that wrote it"
    )


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # All bytes first: `archive.read` checks the CRC at an entry's end.  np.load on the whole file stops
    # where the array's own header says that it ends, and a flipped bit may sit in just that header.
    return np.load(io.BytesIO(archive.read(name + ".npy")), allow_pickle=False)


def _read_header(archive: zipfile.ZipFile) -> dict[str, Any]:
    """The JSON in the entry `meta`; an empty dictionary when somebody else's archive has such a name."""
    array = _read_array(archive, "meta")
    try:
        header = json.loads(array.tobytes().decode("utf-8"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def _plain(value: Any) -> Any:
    """numpy scalars and arrays as JSON knows them: np.int64(3) -> 3, np.arange(2) -> [0, 1]."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"meta holds a {type(value).__name__}, which JSON cannot store: {value!r}")


def _demo() -> None:
    """Save, load, flip one bit, cut the file: what a reader should see stands in the comments."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "demo.npz")
        save(path, {"w": np.arange(6.0).reshape(2, 3), "step": np.array(7)}, {"epoch": 3})
        arrays, meta = load(path)
        print("arrays", arrays, "meta", meta)
        print("in the folder:", os.listdir(folder))  # demo.npz alone: no temporary file stays
        data = bytearray(Path(path).read_bytes())
        where = data.find(np.float64(5.0).tobytes())
        data[where] ^= 1  # 5.0 becomes 5.000000000000001
        for name, broken in {"flipped.npz": data, "cut.npz": data[:300], "foreign.npz": b"hello"}.items():
            Path(folder, name).write_bytes(broken)
            try:
                load(os.path.join(folder, name))
            except UserError as error:
                print("refused:", str(error).replace(folder + os.sep, ""))


if __name__ == "__main__":
    _demo()
