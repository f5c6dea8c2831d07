"""records.py: what fits comes back, what does not is named."""

import json
import math
import os

import pytest

from mini_pkd import UserError
from mini_pkd.records import COUNT, TEXT, WORD, Each, Misfit, between, checked, read_record

SHAPE = {"name": WORD, "rates?": Each(between(0, 1)), "rows": [{"n": COUNT, "note?": TEXT}]}
GOOD = {"name": "T1", "rates": {"a": 0.5, "b": 1}, "rows": [{"n": 7, "note": ""}, {"n": -1}]}


def test_what_fits_comes_back_without_what_nobody_asked_for():
    assert checked({**GOOD, "more": [1]}, SHAPE) == {**GOOD, "rows": [{"n": 7, "note": ""}, {"n": -1, "note": None}]}
    assert checked({"name": "T1", "rates": None, "rows": []}, SHAPE) == {"name": "T1", "rates": None, "rows": []}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"name": None}, "name is null where a name of letters"),
        ({"name": "a b"}, 'name is "a b" where'),
        ({"name": "a\n"}, "name is"),
        ({"rates": [0.5]}, "rates is a list where a dictionary"),
        ({"rates": {"a": 2}}, "rates.a is 2 where a number from 0 to 1 is expected"),
        ({"rates": {"a": 10**400}}, "rates.a is 1000"),
        ({"rates": {"a": math.nan}}, "rates.a is NaN"),
        ({"rates": {"a": True}}, "rates.a is true"),
        ({"rates": {"a b": 0.5}}, 'a name in rates is "a b"'),
        ({"rows": {}}, "rows is a dictionary where a list"),
        ({"rows": [{"n": 1}, 7]}, "rows[1] is 7 where a dictionary"),
        ({"rows": [{"n": 1}, {}]}, "rows[1].n is missing"),
        ({"rows": [{"n": 1.0}]}, "rows[0].n is 1.0 where a whole number"),
        ({"rows": [{"n": 1, "note": 2}]}, "rows[0].note is 2 where a text"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    with pytest.raises(Misfit) as caught:
        checked({**GOOD, **change}, SHAPE)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "data, word",
    [
        (b"", "truncated or not JSON"),
        (json.dumps(GOOD).encode()[:-1], "truncated or not JSON"),
        (b'{"name": "\xff"}', "truncated or not JSON"),
        (json.dumps(GOOD).encode("utf-16"), "truncated or not JSON"),
        (b'{"name": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "x.json"),
        (b"[]", "the whole is a list where a dictionary is expected"),
    ],
    ids=["empty", "cut", "latin", "utf-16", "deep", "list"],
)
def test_files_that_are_none(tmp_path, data, word):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_record(path, SHAPE, "do that")
    message = str(caught.value)
    assert word in message and message.startswith(f"{path} ") and message.endswith("; do that.")


def test_places_where_no_file_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    places = {"nowhere": "there is no", "pipe": "plain file", ".": "plain file", "x" * 300: "File name too long"}
    for name, word in places.items():
        with pytest.raises(UserError, match=word):
            read_record(tmp_path / name, SHAPE, "do that")
