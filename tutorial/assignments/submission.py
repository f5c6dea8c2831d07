"""What students hand in: one file of the expected name, alone, in a folder or in a zip, and never a link."""

import io
import os
import re
import stat
import sys
import zipfile
from pathlib import Path

from mini_pkd import UserError
from mini_pkd.command import printable

LARGEST = 2**20  # bytes of a submission
LARGEST_ZIP = 16 * 2**20
ENTRIES = 10_000


class Unusable(Exception):
    """A submission that cannot be graded; the sentence is for its student."""


def collect(paths, file, out=None):
    """{ID: path} of all submissions below the paths that a teacher gives; what looks like none is named on stderr.

    A path is `ID/a4.py`, `ID_a4.py`, a zip `ID.zip`, a folder `ID` that holds a4.py or a zip, or a folder of such.
    `out`, where results go, is none of them.  An ID is made harmless for names of files and for spreadsheets.
    UserError for two submissions of one ID.
    """
    found, ignored = {}, []

    def add(name, path):
        name = re.sub(r"[^\w.@-]", "_", name)
        name = f"_{name}" if name[:1] in "-.@" or not name else name
        if name in found and found[name] != path:
            raise UserError(f"Both {found[name]} and {path} are submissions of {name}; keep one of them.")
        found[name] = path

    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist; name a folder of submissions, a zip or a {file}.")
        if path.is_file():
            flat = path.name.endswith(f"_{file}")
            add(
                path.name[: -len(file) - 1]
                if flat
                else path.stem
                if path.suffix == ".zip"
                else path.resolve().parent.name,
                path,
            )
            continue
        entries = sorted(path.iterdir())
        if any(entry.name == file for entry in entries):
            add(path.resolve().name, path)
            continue
        for entry in entries:
            if entry.name.startswith(".") or (out and entry.resolve() == Path(out).resolve()):
                continue
            if entry.name.endswith(f"_{file}") and not entry.is_dir():
                add(entry.name[: -len(file) - 1], entry)
            elif entry.is_symlink() or entry.is_dir() or entry.suffix == ".zip":
                add(entry.stem if entry.suffix == ".zip" else entry.name, entry)
            else:
                ignored.append(entry.name)
    if not found:
        raise UserError(f"No submissions are there; expected ID/{file} or ID.zip below {', '.join(map(str, paths))}.")
    if ignored:
        names = ", ".join(map(printable, ignored[:10])) + (" ..." if len(ignored) > 10 else "")
        print(f"assignments: ignored {names} (expected ID/{file}, ID_{file} or ID.zip)", file=sys.stderr)
    return found


def read(path, file):
    """The source of a submission, in bytes; Unusable says what is wrong."""
    if path.is_symlink():
        raise Unusable("the submission is a link")
    if path.is_dir():
        inner = path / file
        zips = sorted(entry for entry in path.iterdir() if entry.suffix == ".zip")
        if not os.path.lexists(inner):
            if len(zips) == 1:
                return _from_zip(zips[0], file)
            there = sorted(entry.name for entry in path.iterdir())
            raise Unusable(f"{file} is missing; there is " + (", ".join(map(repr, there[:3])) if there else "nothing"))
        path = inner
    if path.suffix == ".zip":
        return _from_zip(path, file)
    if path.name != file and not path.name.endswith(f"_{file}"):
        raise Unusable(f"the file is called {path.name!r} instead of {file}")
    return _regular(path, LARGEST)


def _regular(path, largest):
    """The bytes of a regular file; neither a link nor a pipe is opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Unusable(f"{path.name} is missing") from None
    except OSError:
        raise Unusable(f"{path.name} is not a regular file that can be read") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unusable(f"{path.name} is not a regular file")
    with open(handle, "rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise Unusable(f"{path.name} is larger than {largest // 2**20} MB")
    return data


def _from_zip(path, file):
    """The one entry whose base name is `file`, read under a cap: nothing is ever extracted."""
    data = _regular(path, LARGEST_ZIP)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES:
                raise Unusable("the zip has too many entries")
            named = [entry for entry in entries if entry.filename.replace("\\", "/").rpartition("/")[2] == file]
            if len(named) != 1:
                raise Unusable(f"the zip holds {len(named)} files called {file} instead of one")
            kind = named[0].external_attr >> 16
            if named[0].is_dir() or (stat.S_IFMT(kind) not in (0, stat.S_IFREG)):
                raise Unusable(f"{file} in the zip is not a regular file")
            with archive.open(named[0]) as inner:
                source = inner.read(LARGEST + 1)
    except Unusable:
        raise
    except Exception:  # zipfile raises many kinds for what is damaged, encrypted or of an unknown method
        raise Unusable("the zip cannot be read") from None
    if len(source) > LARGEST:
        raise Unusable(f"{file} is larger than {LARGEST // 2**20} MB")
    return source
