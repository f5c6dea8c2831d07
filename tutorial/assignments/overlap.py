"""Who has copied?  Shared token sequences, for the teacher's eyes; they never change a grade.

A submission becomes the set of all runs of K tokens, without comments, docstrings and the names that its author chose.
What the class was given, the stub, does not count.  A high number is a reason to talk, not a proof: short tasks have
few solutions.
"""

import csv
import io
import keyword
import os
import tempfile
import tokenize
from pathlib import Path

from . import task as form
from .dialect import Dialect

K = 12
SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def runs(source):
    """The set of runs of K tokens of a source in bytes, as far as it can be read.

    >>> runs(b"total = 0\\nfor x in xs: total += x * x\\n") == runs(b"s = 0\\nfor a in b: s += a * a  # mine\\n")
    True
    """
    words = []
    try:
        for token in tokenize.tokenize(io.BytesIO(source).readline):
            if token.type == tokenize.STRING and token.line.strip().startswith(("'''", '"""')) or token.type in SKIPPED:
                continue
            chosen = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            words.append("name" if chosen else token.string)
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        pass
    return {hash(tuple(words[i : i + K])) for i in range(len(words) - K + 1)}


def share(mine, other):
    """The part of my runs that the other has, too."""
    return len(mine & other) / len(mine) if mine else 0.0


def table(assignment, dialect, sources):
    """[(ID, share with the reference or the package, ID of the nearest classmate, share with them), ...]."""
    known = set()
    for each in (dialect, Dialect(assignment.conventions)):
        known |= runs(form.solution_file(assignment, each).encode())
    for name in assignment.package_files:
        path = Path(__file__).resolve().parent.parent.parent / "mini_pkd" / name
        if path.exists():
            known |= runs(path.read_bytes())
    stub = runs(form.stub_file(assignment, dialect).encode())
    own = {who: runs(source) - stub for who, source in sources.items()}
    rows = []
    for who, mine in sorted(own.items()):
        others = [(share(mine, theirs), name) for name, theirs in own.items() if name != who]
        most, nearest = max(others, default=(0.0, ""))
        rows.append((who, share(mine, known), nearest if most else "", most))
    return rows


def write(path, assignment, dialect, sources):
    """overlap.csv: for the teacher only."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
        rows = csv.writer(file)
        rows.writerow(["id", "shared with the package or the reference", "nearest classmate", "shared with them"])
        for who, package, nearest, most in table(assignment, dialect, sources):
            rows.writerow([who, f"{package:.2f}", nearest, f"{most:.2f}"])
    os.replace(file.name, path)
