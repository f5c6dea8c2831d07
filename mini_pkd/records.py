"""JSON files as records: read once and checked once; the code that uses a record need not check a value again.

    read_record("result.json", {"name": WORD, "params?": between(0, 1e15), "wer?": Each(RATE), "experiment": [COUNT]},
                "score the model again")

A shape says what is expected: a Leaf of one value, `[shape]` of a list, `Each(shape)` of a dictionary under any
names, or a dictionary with a shape for every key.  A key with a question mark may be missing or null, and then is
None; keys that no shape asks for are left out.  A value that does not fit ends in a UserError that says where it is:

>>> checked({"name": "T1", "size": [7, "x"]}, {"name": WORD, "size": [COUNT], "note?": TEXT})
Traceback (most recent call last):
mini_pkd.records.Misfit: size[1] is "x" where a whole number is expected
"""

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import UserError


class Misfit(ValueError):
    """A value that does not have its shape."""


class Leaf(NamedTuple):
    what: str  # for the sentence "... where `what` is expected"
    fits: Callable[[Any], bool]


class Each(NamedTuple):
    """A dictionary under any names, every value in the same shape."""

    shape: Any


def between(low, high):
    """A Leaf: int or float from `low` to `high`; NaN is not, nor is a number too large for a float."""
    return Leaf(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and low <= value <= high)


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


TEXT = Leaf("a text", lambda value: isinstance(value, str))
WORD = Leaf(
    "a name of letters, digits and .-_",
    lambda value: isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,80}", value) is not None,
)
COUNT = Leaf("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))


def read_record(path, shape, advice):
    """The content of a JSON file in its shape, or a UserError, a sentence that ends in `advice`."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would wait for ever, a device never end
            raise UserError(f"{path} is not a plain file; {advice}.")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no {path}; {advice}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}.") from None
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):  # RecursionError: a hundred thousand brackets
        raise UserError(f"{path} is truncated or not JSON; {advice}.") from None
    try:
        return checked(content, shape)
    except Misfit as fault:
        raise UserError(f"{path} cannot be used, because {fault}; {advice}.") from None


def checked(value, shape, where=""):
    """`value` without the keys that the shape does not ask for, or a Misfit."""
    if isinstance(shape, Leaf):
        if not shape.fits(value):
            raise Misfit(f"{where} is {_shown(value)} where {shape.what} is expected")
        return value
    kind, expected = (list, "a list") if isinstance(shape, list) else (dict, "a dictionary")
    if not isinstance(value, kind):
        raise Misfit(f"{where or 'the whole'} is {_shown(value)} where {expected} is expected")
    if isinstance(shape, list):
        return [checked(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value)]
    inside = f"{where}." if where else ""
    if isinstance(shape, Each):
        names = [checked(name, WORD, f"a name in {where}") for name in value]
        return {name: checked(value[name], shape.shape, inside + name) for name in names}
    record = {}
    for key, inner in shape.items():
        name = key.rstrip("?")
        if key != name and value.get(name) is None:
            record[name] = None
        elif name not in value:
            raise Misfit(f"{inside}{name} is missing")
        else:
            record[name] = checked(value[name], inner, inside + name)
    return record


def _shown(value):
    """A value for a message; of a list or dictionary only the kind, because it may be huge or too deep to print."""
    kinds = {list: "a list", dict: "a dictionary"}
    return kinds.get(type(value)) or json.dumps(value)[:40]
