"""vocabulary_file.py: what is saved comes back, and whatever else is there is a sentence."""

import json
import math

import pytest
from test_bpe import random_counts

from mini_pkd import UserError, checkpoint, vocabulary_file
from mini_pkd.bpe import BPE


@pytest.mark.parametrize("seed", range(20))
def test_save_and_load(tmp_path, seed):
    bpe = BPE.train(random_counts(seed), 30)
    path = tmp_path / "bpe.json"
    vocabulary_file.save(path, bpe)
    loaded = vocabulary_file.load(path)
    assert loaded == bpe
    assert loaded.fingerprint() == bpe.fingerprint()
    assert loaded.listing() == bpe.listing()
    vocabulary_file.save(tmp_path / "again.json", loaded)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_inside_a_checkpoint(tmp_path):
    bpe = BPE.train({"ONE": 3, "TONE": 2}, 100)
    checkpoint.save(tmp_path / "m", {}, {"vocabulary": vocabulary_file.to_dict(bpe)})
    loaded = vocabulary_file.from_dict(checkpoint.load(tmp_path / "m")[1]["vocabulary"])
    assert loaded == bpe and loaded.listing() == bpe.listing()
    with pytest.raises(UserError, match="the vocabulary of S3 is not a mini_pkd vocabulary"):
        vocabulary_file.from_dict({}, "the vocabulary of S3")


def test_awkward_characters_survive(tmp_path):
    bpe = BPE.train({'"\\/': 3, "É😀\u200b": 2, "'": 1, "0": 5, "00": 2}, 30)
    vocabulary_file.save(tmp_path / "b", bpe)
    assert vocabulary_file.load(tmp_path / "b") == bpe


def refused(path):
    with pytest.raises(UserError) as caught:
        vocabulary_file.load(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and ";" in sentence
    return sentence


def test_foreign_and_damaged_files(tmp_path):
    path = tmp_path / "bpe.json"
    assert "could not be read" in refused(path)
    assert "could not be read" in refused(tmp_path)
    bpe = BPE.train({"ONE": 3, "TONE": 2}, 10)
    vocabulary_file.save(path, bpe)
    good = path.read_bytes()
    for length in range(len(good) - 1):  # the last byte is the final newline
        path.write_bytes(good[:length])
        assert "not a mini_pkd vocabulary" in refused(path)
    for data in [b"\xff\xfe\x00", b"[1, 2]", b'{"format": "else"}', b"ONE TWO\n", b"[" * 200_000]:
        path.write_bytes(data)
        assert "not a mini_pkd vocabulary" in refused(path)
    for key, value in [
        ("characters", "XYZ▁"),
        ("characters", 5),
        ("merges", ["N E 5", "Q R 3"]),
        ("merges", ["N E"]),
        ("merges", []),
        ("merges", None),
        ("merges", [["N", "E", 5]]),
        ("merges", {"N E 5": 1}),
        ("asked", "many"),
        ("asked", math.inf),
        ("asked", math.nan),
        ("asked", []),
        ("fingerprint", "000000000000"),
        ("fingerprint", None),
    ]:
        content = json.loads(good)
        content[key] = value
        path.write_text(json.dumps(content), encoding="utf-8")
        assert "edited or damaged" in refused(path), (key, value)
    content = json.loads(good)
    del content["merges"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "edited or damaged" in refused(path)
    for changes in (  # these agree with their fingerprints
        {"characters": "ENOT\ud800▁"},
        {"characters": "ENOT ▁"},
        {"characters": "EENOT▁"},
        {"characters": "TONE▁"},
        {"characters": "ENOT"},
        {"asked": math.inf},
        {"asked": "10"},
        {"version": True},
    ):
        fingerprint = BPE(changes.get("characters", "ENOT▁"), [], [], 10).fingerprint()
        with pytest.raises(UserError, match="edited or damaged"):
            vocabulary_file.from_dict({**content, "merges": [], "fingerprint": fingerprint} | changes)
    assert vocabulary_file.from_dict(vocabulary_file.to_dict(BPE("ENOT▁", [], [], 10))).size == 6
    content["version"] = 9
    path.write_text(json.dumps(content), encoding="utf-8")
    assert "version 9" in refused(path)
