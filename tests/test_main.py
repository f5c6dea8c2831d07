"""`python -m mini_pkd`: every command with a line, every demo by name."""

import subprocess
import sys

from mini_pkd import __main__ as overview


def test_every_command_is_listed_and_every_demo(capsys):
    assert sorted(overview.COMMANDS) == overview.files_with("main")
    overview.main()
    out = capsys.readouterr().out
    for name, what in overview.COMMANDS.items():
        assert f"python -m mini_pkd.{name} " in out and what in out
    assert all(name in out.split() for name in overview.files_with("demo"))
    assert max(map(len, out.splitlines())) <= 120


def test_it_is_a_command():
    out = subprocess.run([sys.executable, "-m", "mini_pkd"], capture_output=True, text=True, check=True).stdout
    assert out.startswith("mini_pkd: multi-stage progressive compression")
