"""partial_transcript.py: what is decoded survives a stop, and counts only for the same weights and search."""

import errno
import json

import numpy as np
import pytest
from handful import SIZE

from mini_pkd import checkpoint
from mini_pkd.partial_transcript import PartialTranscript, weights_checksum
from mini_pkd.transducer import Transducer

ABOUT = {"beam": 8, "weights": 7}


def texts_at(path, about=ABOUT):
    return PartialTranscript(path, about, 1e9).texts


def test_what_is_decoded_survives_a_stop(tmp_path):
    path = tmp_path / "test-clean.partial.json"
    with pytest.raises(KeyboardInterrupt), PartialTranscript(path, ABOUT, minutes=1e9) as partial:
        partial.add({"a/1": "ONE"})
        partial.add({"ü 2": ""})
        assert not path.exists()  # its time has not come
        raise KeyboardInterrupt
    assert texts_at(path) == {"a/1": "ONE", "ü 2": ""}
    with PartialTranscript(path, ABOUT, minutes=0) as partial:
        partial.add({"c": "THREE"})
        assert texts_at(path) == {"a/1": "ONE", "ü 2": "", "c": "THREE"}  # now and then, for a kill


def test_another_search_and_damage_count_for_nothing(tmp_path):
    path = tmp_path / "p.json"
    with PartialTranscript(path, ABOUT, 1e9) as partial:
        partial.add({"a": "ONE"})
    good = path.read_text()
    assert texts_at(path) == {"a": "ONE"}
    for about in (ABOUT | {"beam": 4}, ABOUT | {"weights": 8}):
        assert texts_at(path, about) == {}
    broken = [good[:-9], "", "[1]", "7", "[" * 10**5, json.dumps({"about": ABOUT, "texts": [1]})]
    broken += [json.dumps({"about": ABOUT, "texts": {"a": 1}}), json.dumps({"about": ABOUT})]
    for text in broken:
        path.write_text(text)
        assert texts_at(path) == {}
    path.write_bytes(b"\xff")
    assert texts_at(path) == {}


def test_a_full_disk_does_not_end_decoding(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with PartialTranscript(tmp_path / "p.json", ABOUT, 0) as partial:
        partial.add({"a": "ONE"})
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_is_of_every_weight():
    model = Transducer(SIZE.config(20), np.random.default_rng(0))
    same = Transducer(SIZE.config(20), np.random.default_rng(0))
    before = weights_checksum(model)
    assert before == weights_checksum(same)
    for p in model.named_parameters().values():
        p.data.flat[-1] += 1
        assert weights_checksum(model) != before
        p.data.flat[-1] -= 1
