"""lock.py: one holder at a time, nothing in the folder harmed, and a word where there are no locks."""

import errno
import os
import subprocess
import sys

import pytest

from mini_pkd import UserError, lock
from mini_pkd.lock import Lock, no_follow, only_process

pytest.importorskip("fcntl", reason="no locks on this system")


def test_one_holder_at_a_time(tmp_path):
    with Lock(tmp_path) as first, Lock(tmp_path) as second:
        assert first.take() and not second.take()
        with pytest.raises(UserError, match="another process is training in .*: wait"):
            only_process(tmp_path, "is training").__enter__()
    with only_process(tmp_path, "is training"), Lock(tmp_path) as other:
        assert not other.take()


def test_it_ends_with_its_holder(tmp_path):
    script = f"from mini_pkd.lock import *; from pathlib import Path\nl = Lock(Path({str(tmp_path)!r}))\n"
    script += "l.__enter__(); l.take(); print('held', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with Lock(tmp_path) as ours:
        assert not ours.take()
        process.kill()
        process.communicate()
        assert ours.take()


def test_what_stands_at_the_name_is_not_touched(tmp_path):
    (tmp_path / "lock").write_text("mine")
    with only_process(tmp_path, "is training"):
        pass
    assert (tmp_path / "lock").read_text() == "mine"
    for target in (tmp_path / "precious", tmp_path / "absent"):
        (tmp_path / "lock").unlink()
        (tmp_path / "precious").write_text("mine")
        (tmp_path / "lock").symlink_to(target)
        with pytest.raises(UserError, match="lock is a symbolic link .*: delete it"):
            only_process(tmp_path, "is training").__enter__()
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "absent").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_opening_a_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert open(tmp_path / "pipe", "rb", opener=no_follow).read() == b""
    with pytest.raises(OSError):
        open(tmp_path / "pipe", "ab", opener=no_follow)


@pytest.mark.parametrize("how", ["network disk", "no fcntl"])
def test_without_locks_it_says_so_and_goes_on(tmp_path, monkeypatch, capsys, how):
    if how == "no fcntl":
        monkeypatch.setattr(lock, "fcntl", None)
    else:

        def flock(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", flock)
    with only_process(tmp_path, "is training"):
        pass
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"{tmp_path} cannot be locked" in err and "only one command at a time" in err
