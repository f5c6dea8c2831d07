"""Model files: what was saved comes back, and whatever else stands in one is refused before it costs anything."""

import copy
import json
import math
import random
import tracemalloc

import numpy as np
import pytest

from mini_pkd import UserError, checkpoint, model_file
from mini_pkd.bpe import BPE
from mini_pkd.conformer import ConformerConfig
from mini_pkd.features import NUM_FEATURES, Normaliser
from mini_pkd.model_file import load_model, save_model
from mini_pkd.transducer import Transducer, TransducerConfig

TRAINING = {"updates": 7, "skipped_updates": 0, "seconds": 1.5, "best_dev_wer": 0.25, "best_dev_loss": 3.0}


@pytest.fixture(scope="module")
def parts():
    """(Transducer, Normaliser, BPE), as small as they come."""
    bpe = BPE.train({"ONE": 5, "TONE": 2}, 8)
    encoder = ConformerConfig(blocks=3, width=8, heads=2, window=4, kernel=3, expansion=2)
    model = Transducer(TransducerConfig(encoder, bpe.size, 8, 2, 12), np.random.default_rng(1))
    rng = np.random.default_rng(2)
    return model, Normaliser(rng.standard_normal(NUM_FEATURES), rng.random(NUM_FEATURES) + 0.5), bpe


@pytest.fixture
def saved(parts, tmp_path):
    """(path, arrays, meta) of a good file."""
    path = tmp_path / "model.npz"
    save_model(path, *parts, name="T1", training=TRAINING)
    return path, *checkpoint.load(path)


def refused(path):
    """The one sentence, which names the file."""
    with pytest.raises(UserError) as caught:
        load_model(path)
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
    return sentence


def test_what_was_saved_comes_back(parts, saved):
    model, normaliser, bpe = parts
    loaded, loaded_normaliser, loaded_bpe, about = load_model(saved[0])
    assert loaded.config == model.config and loaded_bpe == bpe and about == {"name": "T1", "training": TRAINING}
    for name, p in model.named_parameters().items():
        assert np.array_equal(loaded.named_parameters()[name].data, p.data)
    assert np.array_equal(loaded_normaliser.mean, normaliser.mean)
    assert np.array_equal(loaded_normaliser.std, normaliser.std)


def test_foreign_and_mismatched_files(parts, saved):
    path, arrays, meta = saved
    checkpoint.save(path, {"a": np.zeros(3)}, {"hello": 1})
    assert "not a model" in refused(path)
    model, normaliser, bpe = parts
    save_model(path, model, normaliser, BPE.train({"ONE": 5, "TONE": 2}, 9))
    assert "do not belong together" in refused(path)
    checkpoint.save(path, arrays, meta)
    path.write_bytes(path.read_bytes()[:-100])
    assert "damaged or cut short" in refused(path)


def test_arrays_that_are_not_the_models(saved):
    path, arrays, meta = saved
    name = "weights/encoder_to_joint.weight"
    spoiled = arrays[name].copy()
    spoiled[3, 2] = np.inf
    for changes, sentence in (
        ({name: arrays[name][:-1]}, "its sizes ask for"),
        ({name: arrays[name].reshape(4, 16)}, "has shape"),
        ({name: arrays[name].astype(np.float64)}, "type float64"),
        ({name: spoiled}, "not finite"),
        ({name: None, "weights/other": arrays[name]}, f"there is no {name}"),
        ({name: None}, "its sizes ask for"),
        ({"other": np.zeros(1, np.float32)}, "its sizes ask for"),
        ({"normaliser/std": -arrays["normaliser/std"]}, "positive deviations"),
        ({"normaliser/mean": arrays["normaliser/mean"] * np.nan}, "not finite"),
    ):
        changed = {key: array for key, array in (arrays | changes).items() if array is not None}
        checkpoint.save(path, changed, meta)
        assert sentence in refused(path), changes.keys()


def test_declared_sizes_are_compared_before_anything_is_built(saved, monkeypatch):
    path, arrays, meta = saved
    monkeypatch.setattr(model_file, "Transducer", lambda *_: pytest.fail("built"))
    for encoder, rest in (
        ({}, {"symbols": 10**9}),
        ({"width": 2**20}, {}),
        ({"blocks": 10**9}, {}),
        ({"window": 2**31 - 1}, {}),
        ({}, {"lstm_layers": 2**31 - 1}),
        ({"width": 2**31}, {}),
        ({"pools": 4}, {}),
        ({"heads": 3}, {}),
        ({"features": 41}, {}),
    ):
        sizes = {**meta["model"], **rest, "encoder": {**meta["model"]["encoder"], **encoder}}
        checkpoint.save(path, arrays, {**meta, "model": sizes})
        refused(path)
    # as many numbers as two million blocks of width 1 have, in one array: building them would take gigabytes
    sizes = {**meta["model"], "encoder": {**meta["model"]["encoder"], "width": 1, "heads": 1, "blocks": 20000}}
    declared = model_file.count_parameters(TransducerConfig.from_dict(sizes)) + 2 * NUM_FEATURES
    checkpoint.save(path, {"weights": np.zeros(declared, np.float32)}, {**meta, "model": sizes})
    assert "in 1 arrays" in refused(path)


@pytest.mark.parametrize("key, value", [
    ("width", "8"), ("width", 8.0), ("width", True), ("width", None), ("width", [8]), ("width", -8), ("width", 0),
    ("heads", 0), ("heads", "%s"), ("blocks", math.nan), ("window", 10**400), ("pools", -1), ("depth", 3),
])  # fmt: skip
def test_sizes_of_wrong_types(saved, key, value):
    path, arrays, meta = saved
    meta["model"]["encoder"][key] = value
    checkpoint.save(path, arrays, meta)
    assert "not a model that this version can load" in refused(path)


@pytest.mark.parametrize("sizes", [None, [], {}, {"encoder": {}, "symbols": 5, "depth": 3}])
def test_sizes_that_are_not_those_of_a_transducer(saved, sizes):
    path, arrays, meta = saved
    checkpoint.save(path, arrays, {**meta, "model": sizes})
    assert "its sizes are not encoder, symbols," in refused(path)


# --- mutations ------------------------------------------------------------------------------------------------


ODDITIES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, math.nan, math.inf, -math.inf, "", "8",
    "x", "\ud800", "\x1b[2J\n", "x" * 3000, [], [1], [[[]]], [0] * 1000, {}, {"a": 1}, [None, "x"],
)  # fmt: skip


def mutated(values, rng):
    """A copy of JSON-able `values` with one thing changed somewhere: replaced, dropped, doubled, wrapped, added."""
    values = copy.deepcopy(values)
    places = []

    def collect(node):
        for key in range(len(node)) if isinstance(node, list) else list(node):
            places.append((node, key))
            if isinstance(node[key], list | dict):
                collect(node[key])

    collect(values)
    node, key = rng.choice(places)
    how = rng.randrange(6)
    if how == 0:
        del node[key]
    elif how == 1:
        node[key] = [node[key]]
    elif how == 2 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    elif how == 3:
        node[key] = {"a": node[key]}
    elif how == 4 and isinstance(node, dict):
        node["more"] = rng.choice(ODDITIES)
    else:
        node[key] = rng.choice(ODDITIES)
    for _ in range(rng.randrange(2) * 200):  # deep, but not deeper than JSON goes
        if how == 1:
            node[key] = [node[key]]
    return values


@pytest.mark.parametrize("seed", range(4))
def test_a_meta_changed_by_hand_is_refused_or_still_a_model(saved, seed):
    """100 mutations each: never another exception, never more memory than a good file takes."""
    path, arrays, meta = saved
    rng = random.Random(seed)
    good = json.dumps(meta)
    refusals = 0
    for _ in range(100):
        broken = mutated(meta, rng)
        checkpoint.save(path, arrays, broken)
        tracemalloc.start()
        try:
            model, normaliser, bpe, about = load_model(path)
        except UserError as error:
            sentence = str(error)
            assert str(path) in sentence and "\n" not in sentence and len(sentence) < 600
            sentence.encode("utf-8")
            refusals += 1
            continue
        finally:
            assert tracemalloc.get_traced_memory()[1] < 4 * path.stat().st_size + 2**20
            tracemalloc.stop()
        rows, lengths = model.encode(normaliser(np.zeros((20, NUM_FEATURES))), [20])
        assert rows.shape == (lengths[0], 8) and np.isfinite(rows).all()
        assert bpe.decode(bpe.encode("ONE TONE")) == "ONE TONE" and bpe.listing()
        assert f"{about.get('training', TRAINING)['best_dev_wer']:.2f}"
    assert 50 < refusals < 100 and json.dumps(meta) == good
