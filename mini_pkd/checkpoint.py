"""Crash-safe files: a checkpoint is either the old one or the new one, whole, at every instant.

A run may be stopped by Ctrl-C, a power cut or a full disk while it is writing.  Hence the old recipe:

    1. write everything under a temporary name in the same folder    (a rename cannot cross disks)
    2. flush, fsync: the bytes are on the disk, not in some cache    (else step 3 may survive a power
    3. os.replace: one atomic rename over the old file                cut that the bytes do not)
    4. fsync the folder: the rename itself is on the disk

Kill the process before step 3 and the old file stands untouched; after it, the new one is there.  Disks go bad as well,
so a training keeps its last two checkpoints, and `load_newest` falls back on the older one.

A checkpoint holds named arrays and a JSON-able dictionary `meta` (step, epoch, sizes, the vocabulary's
fingerprint).  It is a plain uncompressed .npz, that is a zip of .npy files: `np.load` opens it, nothing
is pickled, so loading a stranger's file cannot run a stranger's code, and the zip's CRC over every
array finds a flipped bit.  Nor can it fill the memory: every entry must be stored as it is, none may
overlap another, and an array's shape must account for the bytes that are there.  The entries are

    meta              uint8: JSON text {"format", "version", "names", "meta"}
    0 encoder.weight  the arrays in order; the true names stand in "names", because .npz keys have traps of
    1 encoder.bias    their own (np.savez takes a key `file` for its own argument; `x` and `x.npy` clash)

Left out: compression (weights hardly shrink, and writing takes far longer) and sharding.
"""

import errno
import io
import json
import math
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np

from . import UserError

FORMAT = "mini_pkd checkpoint"
VERSION = 1
NUMBERS = "biufc"  # the kinds of dtype that a checkpoint stores
MAX_META = 2**24  # bytes of JSON; a vocabulary of 10026 takes 0.3 MB, and parsed JSON can be 20 times its text


class DiskFull(UserError):
    """There was no room for a file; an older version of it is untouched."""


# --- atomic writing -------------------------------------------------------------------------------


def write_file_atomic(path, write, keep=None):
    """Let `write(file)` fill a binary file that appears at `path` only once it is complete.

    keep: the name that an older version gets; killed between the two renames, there is only that one.

    The temporary name is always `path` + ".tmp": what a `kill -9` leaves behind is removed by the
    next save instead of piling up.  The price: two processes must not write the same path at once.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # "x" makes a new file: a link put there in between is an error
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except BaseException as error:  # BaseException: Ctrl-C in the middle of a write must clean up as well
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (DiskFull if full else UserError)(_cannot_write(path, error, full)) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, so the rename is not synced
        with suppress(OSError):  # some network disks refuse to sync a folder; the file itself is safe
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_text_atomic(path, text):
    """Write `text` as UTF-8, line ends as they are: the old file or the new one, never half of one."""
    write_file_atomic(path, lambda file: file.write(text.encode("utf-8")))


def _cannot_write(path, error, full):
    if full:
        return (
            f"the disk is full: {path} could not be written (an older version of it is untouched); "
            "free some space and start the same command again"
        )
    reason = error.strerror or str(error)
    return f"{path} could not be written ({reason}); check the folder and its permissions"


# --- checkpoints ----------------------------------------------------------------------------------


def save(path, arrays, meta, keep=None):
    """Write named arrays and a JSON-able `meta` to `path`, atomically.  keep: what the file there now is called then.

    Arrays of numbers of any shape (also 0-d and empty) come back to the bit, in C order.  `meta`
    goes through JSON: tuples come back as lists, keys as strings, numpy scalars as plain numbers.
    """
    entries = {}
    for i, (name, array) in enumerate(arrays.items()):
        array = np.asarray(array, order="C")
        if array.dtype.kind not in NUMBERS:  # np.savez would quietly pickle objects, and load would refuse them
            raise TypeError(f"array {name!r} holds {array.dtype}; a checkpoint stores numbers only")
        entries[f"{i} {name}"] = array
    header = {"format": FORMAT, "version": VERSION, "names": list(arrays), "meta": dict(meta)}
    text = json.dumps(header, default=_plain).encode("utf-8")
    if len(text) > MAX_META:
        raise ValueError(f"meta is {len(text)} bytes of JSON; {MAX_META} is the most that load accepts")
    entries["meta"] = np.frombuffer(text, dtype=np.uint8)
    write_file_atomic(path, lambda file: np.savez(file, **entries), keep)


def load_newest(paths, tell=lambda sentence: None, headers_only=False):
    """`load` the first of these files that is whole, or None if none is there; `tell` hears what was passed over.

    UserError if all that are there are damaged.
    """
    errors = []
    for path in [path for path in paths if path.exists()]:
        try:
            found = load(path, headers_only)
        except UserError as error:
            errors.append(error)
        else:
            if errors:
                tell(f"{errors[0]}: going on from the one before it, {path.name}")
            return found
    if errors:
        raise errors[0]
    return None


def load(path, headers_only=False):
    """Read what `save` wrote: (arrays, meta).  Anything else is a UserError of one sentence.

    headers_only: no arrays are read, ({}, meta); a file that was cut is still found out, a flipped bit is not.
    """
    path = Path(path)
    try:
        if path.is_fifo():  # opening one waits for a writer
            raise UserError(f"{path} is a pipe and not a mini_pkd checkpoint; give a file that the training wrote")
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
                files, header = archive.namelist(), {}
                if "meta.npy" in files:
                    _check_entries(archive, os.fstat(file.fileno()).st_size)
                    header = _read_header(archive)
                if header.get("format") == FORMAT and type(header["version"]) is not int:
                    raise ValueError("a version that is not a number")
                if header.get("format") == FORMAT and header["version"] == VERSION:
                    names, meta = header["names"], header["meta"]
                    wanted = ["meta.npy", *(f"{i} {name}.npy" for i, name in enumerate(names))]
                    if sorted(wanted) != sorted(files) or not isinstance(meta, dict):
                        raise ValueError("a header that does not fit the entries")
                    if headers_only:
                        return {}, meta
                    arrays = {str(name): _read_array(archive, f"{i} {name}") for i, name in enumerate(names)}
                    if len(arrays) < len(names):
                        raise ValueError("two arrays of one name")
                    return arrays, meta
        except Exception as error:
            raise UserError(
                f"the checkpoint {path} is damaged or cut short ({type(error).__name__}); "
                "delete it to train again, or bring back a copy"
            ) from error
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is an archive but not a mini_pkd checkpoint; give a file that the training wrote")
    raise UserError(
        f"the checkpoint {path} has format version {header['version']} and this program reads version "
        f"{VERSION}; load it with the mini_pkd that wrote it"
    )


def _check_entries(archive, size):
    """An archive of `size` bytes as `save` writes it holds no more than that: no compression, no byte used twice."""
    end = 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError("a compressed entry")
        if entry.header_offset < end:
            raise ValueError("overlapping entries")
        end = entry.header_offset + zipfile.sizeFileHeader + entry.file_size
    if end > size or archive.getinfo("meta.npy").file_size > MAX_META:
        raise ValueError("an entry of impossible size")


def _read_array(archive, name):
    # All bytes first: `archive.read` checks the CRC at an entry's end.  np.load on the whole file stops
    # where the array's own header says that it ends, and a flipped bit may sit in just that header.
    data = archive.read(name + ".npy")
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("an array of another format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype.kind not in NUMBERS or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array header that does not fit its bytes")  # before anything is allocated for it
    return np.ndarray(shape, dtype, data, stream.tell()).copy()


def _read_header(archive):
    """The JSON in the entry `meta`; an empty dictionary if the entry is another program's."""
    array = _read_array(archive, "meta")
    try:
        header = json.loads(array.tobytes().decode("utf-8"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def _plain(value):
    """numpy scalars and arrays as JSON knows them: np.int64(3) -> 3, np.arange(2) -> [0, 1]."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"meta holds a {type(value).__name__}, which JSON cannot store: {value!r}")


def demo():
    """Save, load, flip one bit, cut the file."""
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
    demo()
