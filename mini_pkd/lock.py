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
    """For `open(path, mode, opener=no_follow)`: refuses a link or a pipe that stands at this name.

    Writing through a link would overwrite a file of the user's somewhere else.
    O_NONBLOCK: opening a pipe would otherwise wait for its other end; to an ordinary file it means nothing.
    """
    try:
        return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UserError(f"{path} is a symbolic link where mini_pkd keeps a file of its own: delete it.") from None
        raise


class Lock:
    """The lock `folder`/lock: `with` opens it, and it is ours once `take` has returned True."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        # "a", because "w" would empty the file before we hold the lock.
        self._file = open(self.folder / "lock", "a", opener=no_follow)
        return self

    def __exit__(self, *exception):
        self._file.close()

    def take(self):
        """Try to take the lock -> whether we hold it now; never waits."""
        try:
            if fcntl is None:
                raise OSError("this system has no locks")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network disks cannot lock: go on with a warning
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
