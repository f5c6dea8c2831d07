"""command.py: every command ends with a status and at most one sentence, wherever its output goes."""

import errno
import os
import subprocess
import sys

import pytest

from mini_pkd import UserError, cascade, corpus, download, report, transcribe, wer
from mini_pkd.command import Parser, command, disk_errors

COMMANDS = {module.__name__.rpartition(".")[2]: module for module in (cascade, corpus, download, report, wer)}
COMMANDS["transcribe"] = transcribe


def ending(action):
    @command("x")
    def main(argv=None):
        return action()

    return main


def raising(error):
    def action():
        raise error

    return ending(action)


def test_statuses_and_the_form_of_the_sentence(capsys):
    assert ending(lambda: None)() == ending(lambda: 0)() == 0 and ending(lambda: 3)() == 3
    assert raising(UserError("A is B; do C."))() == 1
    assert ending(lambda: Parser("x").parse_args(["--nonsense"]))() == 2
    assert raising(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err.splitlines() == [
        "x: A is B; do C.",
        "x: unrecognized arguments: --nonsense; --help shows what can be given.",
        "x: stopped.",
    ]
    assert ending(lambda: Parser("x").parse_args(["--help"]))() == 0
    assert "python -m mini_pkd.x" in capsys.readouterr().out


def test_mistakes_of_ours_keep_their_traceback():
    for error in (ValueError("x"), FileNotFoundError(2, "x"), BrokenPipeError(32, "not stdout's")):
        with pytest.raises(type(error)):
            raising(error)()


@pytest.mark.parametrize("name", COMMANDS)
def test_all_commands_speak_alike(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = COMMANDS[name].main
    nothing = {
        "cascade": ["--data", "nowhere"],
        "corpus": ["nowhere"],
        "download": ["nowhere", "--to", "here"],
        "report": ["nowhere"],
        "transcribe": ["nowhere.npz", "nowhere.wav"],
        "wer": ["nowhere", "nowhere"],
    }
    for arguments, status in ((nothing[name], 1), (["--nonsense"], 2)):
        assert main(arguments) == status
        error = capsys.readouterr().err
        assert error.startswith(f"{name}: ") and error.count("\n") == 1 and error.endswith("\n")
    assert main(["--help"]) == 0 and f"python -m mini_pkd.{name}" in capsys.readouterr().out


# --- stdout, as a program sees it ---------------------------------------------------------------------------


def run(body, redirect, reader=True, **environment):
    """A command with this body in a process of its own -> (status, stderr); `reader`: of its stdout."""
    program = "import sys\nfrom mini_pkd.command import command\n@command('x')\ndef main():\n    "
    script = ["sh", "-c", f'"$0" -c "$1" {redirect}', sys.executable, program + body + "\nsys.exit(main())"]
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    read, write = os.pipe()
    if not reader:
        os.close(read)
    with open(write, "wb") as output:
        done = subprocess.run(script, stdout=output, stderr=subprocess.PIPE, env={**kept, **environment}, timeout=100)
    if reader:
        os.close(read)
    return done.returncode, done.stderr.decode()


SHORT, LONG, FLUSHED = "print('a')", "print('a' * 10**6)", "print('a', flush=True)"  # short waits in the buffer


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only")
@pytest.mark.parametrize("environment", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("body", [SHORT, LONG, FLUSHED])
def test_a_full_device(body, environment):
    status, error = run(body, "> /dev/full", **environment)
    assert status == 1 and error == (
        "x: stdout cannot be written (No space left on device); send the output somewhere else.\n"
    )


@pytest.mark.parametrize("body", [SHORT, LONG, FLUSHED])
def test_a_reader_that_has_left_needs_no_sentence(body):
    assert run(body, "", reader=False) == (141, "")


def test_a_sentence_is_told_also_when_the_reader_has_left():
    failing = "from mini_pkd import UserError; raise UserError('A is B.')"
    assert run(failing, "", reader=False) == (1, "x: A is B.\n")


def test_closed_streams():
    status, error = run(SHORT, ">&-")
    assert status == 1 and error == "x: stdout is closed; send the output to a file, or to /dev/null.\n"
    assert run(SHORT + "; print('b', file=sys.stderr)", "2>&-") == (0, "")
    assert run("1 / 0", "2>&-")[0] == 1
    assert run(SHORT, "<&-") == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is always full exists on Linux only")
def test_full_stdout_and_full_stderr():
    assert run(SHORT, ">/dev/full 2>/dev/full")[0] != 0


def test_names_that_the_terminal_cannot_show():
    """A file name that is not UTF-8, a text that is not ASCII: shown with escapes."""
    assert run("print('\\udcff \u00e9 \u2581')", "", PYTHONIOENCODING="ascii") == (0, "")


def test_a_reader_of_the_output_that_has_left_is_no_fault_of_a_folder():
    """command.py knows what to do; a full disk still is one."""
    with pytest.raises(BrokenPipeError), disk_errors("runs"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(UserError, match="disk of runs is full"), disk_errors("runs"):
        raise OSError(errno.ENOSPC, "No space left on device")
