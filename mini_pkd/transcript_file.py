"""Transcripts on disk in LibriSpeech's own format: a line `ID TEXT` per utterance."""

from pathlib import Path

from . import UserError
from .checkpoint import write_text_atomic


def read_transcript(path):
    """{id: text} in the file's order.  A line with an id alone is an utterance without words."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror}); give a transcript file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; give a file with lines `ID TEXT`") from None
    transcript = {}
    for number, line in enumerate(text.split("\n"), start=1):
        parts = line.split(maxsplit=1)
        if not parts:
            continue
        if parts[0] in transcript:
            raise UserError(f"{path}, line {number}: the utterance {parts[0]} stands there twice; keep one")
        transcript[parts[0]] = parts[1].rstrip() if len(parts) == 2 else ""
    return transcript


def write_transcript(path, transcript):
    """Write {id: text}, atomically.  White space inside a text shrinks to single blanks."""
    lines = []
    for name, text in transcript.items():
        if name.split() != [name]:
            raise UserError(f"the utterance id {name!r} is empty or holds white space; rename the utterance")
        lines.append(" ".join([name, *text.split()]) + "\n")
    write_text_atomic(path, "".join(lines))
