"""The file of a vocabulary: JSON that people can read, with one merge a line, and a reader that checks all of it.

bpe.py holds the vocabulary itself; a model file carries the same content (model_file.py).
"""

import json
from pathlib import Path

from . import UserError
from .bpe import BPE, MARKER
from .checkpoint import write_text_atomic

FORMAT = "mini_pkd bpe"
VERSION = 1


def to_dict(bpe):
    """A BPE as plain JSON values, one merge as "left right count"."""
    merges = [
        f"{bpe.units[left]} {bpe.units[right]} {count}"
        for (left, right), count in zip(bpe.merges, bpe.counts, strict=True)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": bpe.fingerprint(),
        "asked": bpe.asked,
        "characters": bpe.characters,
        "merges": merges,
    }


def from_dict(content, where="this vocabulary"):
    """The inverse of `to_dict` -> BPE; `where` is what a UserError calls the content if it is anything else."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{where} is not a mini_pkd vocabulary, or cut short; train it again or bring a copy")
    version = content.get("version")
    if type(version) is int and version != VERSION:
        raise UserError(
            f"{where} has format version {version} and this program reads version {VERSION}; "
            f"load it with the mini_pkd that wrote it"
        )
    try:
        characters, asked = content["characters"], content["asked"]
        intact = (
            type(version) is type(asked) is int
            and characters.split() == [characters]  # no white space
            and characters == "".join(sorted({MARKER, *characters}))  # each once, in order, and the marker
        )
        characters.encode("utf-8")  # half a surrogate pair, which JSON can hold, could never be printed
        id_of = {character: i for i, character in enumerate(characters, start=1)}
        merges, counts = [], []
        for line in content["merges"]:
            left, right, count = line.split(" ")
            merges.append((id_of[left], id_of[right]))
            counts.append(int(count))
            id_of[left + right] = len(characters) + len(merges)
        bpe = BPE(characters, merges, counts, asked)
        intact = intact and bpe.fingerprint() == content["fingerprint"]
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        intact = False
    if not intact:
        raise UserError(f"{where} is a vocabulary that was edited or damaged; train it again or bring a copy")
    return bpe


def save(path, bpe):
    """Write `to_dict` atomically."""
    write_text_atomic(path, json.dumps(to_dict(bpe), ensure_ascii=False, indent=0) + "\n")


def load(path):
    """What `save` wrote -> BPE; any other file is a UserError of one sentence."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error.strerror}); give a vocabulary file") from None
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        content = None
    return from_dict(content, str(path))
