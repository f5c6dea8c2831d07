"""partial_line.py: what a terminal shows."""

import io
from types import SimpleNamespace

from mini_pkd.partial_line import PartialLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_one_line_that_grows(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: SimpleNamespace(columns=20))
    file = Terminal()
    line = PartialLine("a", file)
    for text in ("", "ONE", "ONE", "ONE TWO THREE FOUR"):
        line.show(text)
    line.clear()
    shown = file.getvalue()
    assert "\n" not in shown and shown.endswith("\r\x1b[K")
    frames = [frame.removesuffix("\x1b[K") for frame in shown.split("\r")[1:]]
    assert frames == ["a ONE ...", "...WO THREE FOUR ...", ""] or frames[1].endswith(" FOUR ...")
    assert all(len(frame) < 20 for frame in frames)


def test_clearing_what_was_never_shown_writes_nothing():
    for file in (Terminal(), io.StringIO()):
        PartialLine("a", file).clear()
        assert file.getvalue() == ""
