"""transcript_file.py: our own files come back, those of others are read, damaged ones are named."""

import pytest

from mini_pkd import UserError
from mini_pkd.transcript_file import read_transcript, write_transcript


def test_transcripts_round_trip(tmp_path):
    transcript = {"84-1-0000": "MISTER QUILTER'S APOSTLE", "84-1-0001": "", "é": "ÜBER  ALL\tES"}
    path = tmp_path / "test.txt"
    write_transcript(path, transcript)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines == ["84-1-0000 MISTER QUILTER'S APOSTLE", "84-1-0001", "é ÜBER ALL ES", ""]
    assert read_transcript(path) == {**transcript, "é": "ÜBER ALL ES"}
    write_transcript(path, {})
    assert read_transcript(path) == {}


def test_transcripts_of_others(tmp_path):
    path = tmp_path / "test.txt"
    path.write_bytes(b"\xef\xbb\xbfb ONE TWO  \r\n\r\na\tTHREE\r\nc")  # BOM, CRLF, tab, no last newline
    assert list(read_transcript(path).items()) == [("b", "ONE TWO"), ("a", "THREE"), ("c", "")]


def test_bad_transcripts(tmp_path):
    path = tmp_path / "test.txt"
    with pytest.raises(UserError, match="could not be read"):
        read_transcript(path)
    path.write_bytes(b"a ONE\nb TWO\na ONE\n")
    with pytest.raises(UserError, match="line 3: the utterance a stands there twice"):
        read_transcript(path)
    path.write_bytes(b"fLaC\x00\xff\xfe\x80")
    with pytest.raises(UserError, match="not UTF-8"):
        read_transcript(path)
    for name in ["", "a b", "a\n"]:
        with pytest.raises(UserError, match="utterance id"):
            write_transcript(path, {name: "X"})
