"""How every command ends: one sentence on stderr and an exit status, never a traceback.

    @command("report")
    def main(arguments=None):
        options = Parser("report", description=...).parse_args(arguments)
        ...

    0    done
    1    something the user can mend: a UserError, or an output that cannot be written
    2    a command line that cannot be understood
    130  Ctrl-C
    141  the reader of our output has left, as `head` does; no sentence, but not done either (128 + SIGPIPE, as in C)

A sentence always has the same form, `report: X is Y; do Z`.  Any other exception is a mistake of ours and keeps
its traceback.
"""

import argparse
import functools
import os
import sys
from contextlib import suppress

from . import UserError


class UsageError(UserError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """argparse, except that it leaves with one sentence: no usage in front of it, no form of its own."""

    def __init__(self, name, **settings):
        super().__init__(prog=f"python -m mini_pkd.{name}", **settings)

    def error(self, message):
        raise UsageError(f"{message}; --help shows what can be given.")


def command(name):
    """Decorates the `main` of `python -m mini_pkd.<name>`: it returns the exit status, whatever happens."""

    def decorate(main):
        @functools.wraps(main)
        def run(*arguments):
            if sys.stderr is None:  # a closed stream is None to Python: there is nobody to tell
                sys.stderr = open(os.devnull, "w")
            if sys.stdout is None:
                return complain(name, "stdout is closed; send the output to a file, or to /dev/null.")
            with suppress(AttributeError):  # a name or a text that stdout's encoding lacks is no reason to stop
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
    """An OSError does not say whose it is, so try once more: a refusal now means that it was stdout's."""
    try:
        print(flush=True)
    except OSError:
        # What still waits in the buffer goes nowhere, or the interpreter would complain when it leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
