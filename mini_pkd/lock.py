"""One process at a time in a folder, and opening files there without following links.

A lock is the kernel's (flock) on a file `lock` in the folder.  It ends with the process that holds it, however that
process ends, so a stale one cannot exist and the file may stay where it is.
"""

import contextlib
import errno
import os
import sys

from . import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def no_follow(path, flags):
    """For `open(path, mode, opener=no_follow)`: a link or a pipe that stands at this name is not written through.

    What we write under a name of our own must not end up in whatever file of the user's a link there points to.
    O_NONBLOCK: opening a pipe would otherwise wait for its other end; to an ordinary file it means nothing.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link where mini_pkd keeps a file of its own: delete it.") from None
        raise


class Lock:
    """`folder`/lock, opened by `with` and ours once `take` has said so."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        # "a": a mode that truncates would empty whatever stands there, before we know that it is ours.
        self._file = open(self.folder / "lock", "a", opener=no_follow)
        return self

    def __exit__(self, *exception):
        self._file.close()

    def take(self):
        """-> whether we hold the lock now; never waits."""
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # a network disk, say: go on, and leave the care to the user
            print(
                f"mini_pkd: {self.folder} cannot be locked ({error.strerror or error}): "
                f"make sure that only one command at a time uses it.",
                file=sys.stderr,
            )
        return True


@contextlib.contextmanager
def only_process(folder, doing):
    """Hold the lock of `folder`, or raise a UserError when another process does."""
    with Lock(folder) as lock:
        if not lock.take():
            raise UserError(f"another process {doing} in {folder}: wait until it is done.")
        yield
