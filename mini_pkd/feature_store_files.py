"""What stands in a feature store's index and journal, and how it is checked.

Both are lines of JSON, each with a checksum of itself:

    journal.jsonl    while the store is being built: a fingerprint, then an entry for every group of utterances whose
                     rows are on the disk
    index.json       once it is complete: one line for all of it

A reader believes nothing that it has not checked: a line may be damaged, cut short, or not ours at all.
"""

import contextlib
import json
import math
import zlib

from .features import NUM_FEATURES
from .lock import no_follow

JOURNAL = "journal.jsonl"


def seal(content):
    """A dictionary -> a line of JSON that carries a checksum of itself."""
    return json.dumps({**content, "crc32": zlib.crc32(json.dumps(content).encode())}) + "\n"


def unseal(line):
    """The inverse of `seal` (Python's JSON gives back what it wrote); ValueError for any other line."""
    try:
        content = json.loads(line)
        checksum = content.pop("crc32")
        intact = line.endswith(b"\n") and zlib.crc32(json.dumps(content).encode()) == checksum
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError("damaged or cut short")
    return content


def _check_entry(entry):
    """Check what an entry of the journal and the index have in common; ValueError if anything is wrong."""
    counts = [entry.get(key) for key in ("lengths", "checksums")]
    sums = [entry.get(key) for key in ("sum", "squares")]
    problems = entry.get("problems")
    if not (
        all(type(x) is list and all(type(n) is int and 0 <= n < 2**63 for n in x) for x in counts)
        and len(counts[0]) == len(counts[1])
        and all(type(x) is list and len(x) == NUM_FEATURES for x in sums)
        and all(type(x) is float and math.isfinite(x) for x in sums[0] + sums[1])
        and type(problems) is list
        and all(_strings(problem) and len(problem) == 2 for problem in problems)
    ):
        raise ValueError("not what a feature store writes")
    return entry


def _strings(values):
    return type(values) is list and all(type(x) is str for x in values)


def read_index(path):
    """index.json; ValueError unless it is whole and of the shape that `_build` gives it."""
    with open(path, "rb", opener=no_follow) as file:
        index = _check_entry(unseal(file.read()))
    columns = [index.get(key) for key in ("ids", "speakers", "texts")]
    if not (
        all(_strings(x) and len(x) == len(index["lengths"]) for x in columns)
        and type(index.get("fingerprint")) is str
        and index.get("dtype") in ("float16", "float32")
        and 0 not in index["lengths"]
    ):
        raise ValueError("not the index of a feature store")
    return index


def read_journal(folder, fingerprint, row_bytes, most):
    """The journal of an interrupted build -> (its intact entries joined into one, how many bytes they take)."""
    joined = {"lengths": [], "checksums": [], "problems": []}
    joined |= {"sum": [0.0] * NUM_FEATURES, "squares": [0.0] * NUM_FEATURES}
    position = rows = 0
    # If there is no journal, or it is another corpus's, or damaged from some line on, the entries before that count.
    with contextlib.suppress(OSError, ValueError), open(folder / JOURNAL, "rb", opener=no_follow) as file:
        written = (folder / "rows.bin").stat().st_size
        for line in file:
            content = unseal(line)
            if position == 0:
                if content != {"fingerprint": fingerprint}:
                    break
            else:
                entry = _check_entry(content)
                rows += sum(entry["lengths"])
                if rows * row_bytes > written or len(joined["lengths"]) + len(entry["lengths"]) > most:
                    break
                for key in ("lengths", "checksums", "problems"):
                    joined[key] += entry[key]
                joined |= {key: entry[key] for key in ("sum", "squares")}  # these two are running sums
            position += len(line)
    return joined, position
