"""What all commands share: how they end, and what they tell on the way.

A command ends with one sentence on stderr and an exit status, never with a traceback:

    @command("report")
    def main(arguments=None):
        options = Parser("report", description=...).parse_args(arguments)
        ...

    0    done
    1    something the user can mend: a UserError, or an output that cannot be written
    2    a command line that cannot be understood
    130  Ctrl-C
    141  the reader of our output has left, as `head` does: no sentence, but not done (128 + SIGPIPE, as of a C program)

A sentence always has the same form, `report: X is Y; do Z`.  Any other exception is a mistake of ours and keeps
its traceback.
"""

import argparse
import errno
import functools
import os
import sys
from contextlib import contextmanager, suppress

from tqdm import tqdm

from . import UserError

# --- how a command ends ---------------------------------------------------------------------------


class UsageError(UserError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, except that its errors are one sentence, without the usage in front."""

    def __init__(self, name, **settings):
        super().__init__(prog=f"python -m mini_pkd.{name}", **settings)

    def error(self, message):
        raise UsageError(f"{message}; --help shows what can be given.")


def command(name):
    """Decorate the `main` of `python -m mini_pkd.<name>`, so that it returns the exit status whatever happens."""

    def decorate(main):
        @functools.wraps(main)
        def run(*arguments):
            if sys.stderr is None:  # it is closed
                sys.stderr = open(os.devnull, "w")
            if sys.stdout is None:
                return complain(name, "stdout is closed; send the output to a file, or to /dev/null.")
            with suppress(AttributeError):  # characters that stdout's encoding lacks are escaped, not an error
                sys.stdout.reconfigure(errors="backslashreplace")
            try:
                try:
                    return main(*arguments) or 0
                finally:
                    sys.stdout.flush()  # the interpreter's own flush comes too late for a sentence
            except SystemExit as end:  # --help
                return end.code or 0
            except UserError as error:
                return complain(name, error, 2 if isinstance(error, UsageError) else 1)
            except KeyboardInterrupt:
                return complain(name, "stopped.", 130)
            except OSError as error:
                if not _stdout_refuses():
                    raise
                if isinstance(error, BrokenPipeError):
                    return 141
                return complain(name, f"stdout cannot be written ({error.strerror}); send the output somewhere else.")

        return run

    return decorate


def complain(name, sentence, status=1):
    """Print the sentence in the one form of all commands; returns `status`."""
    with suppress(OSError):  # stderr may be as full as stdout
        print(f"{name}: {sentence}", file=sys.stderr)
    return status


def _stdout_refuses():
    """An OSError does not say which stream or file caused it, so try stdout once more."""
    try:
        print(flush=True)
    except OSError:
        # The rest of the buffer goes nowhere; otherwise the interpreter would complain as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


@contextmanager
def disk_errors(folder):
    """Turn errors of the disk below `folder` into sentences: a full or unwritable disk is the user's to mend."""
    try:
        yield
    except BrokenPipeError:  # not the disk: the reader of our output has left, which `command` handles
        raise
    except OSError as error:
        name = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence = (
                f"the disk of {folder} is full; free some space and run the same command again, "
                f"it continues where it stopped."
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sentence = (
                f"{name} cannot be written or read ({error.strerror}); change its permissions or choose another folder."
            )
        else:
            sentence = (
                f"{name} cannot be used ({error.strerror or error}); look at what is there, or choose another folder."
            )
        raise UserError(sentence) from None


# --- what a command tells on the way --------------------------------------------------------------


def printable(text):
    r"""`text` as one line that any UTF-8 file or terminal takes, because a file's name may hold almost any bytes.

    >>> print(printable("café \udce9\n"))
    café \udce9\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def progress_bar(label, **settings):
    """A progress bar with ETA on stderr, updated rarely if stderr is a log file; without a label there is no bar."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=label, disable=label is None, mininterval=interval, dynamic_ncols=True, **settings)
