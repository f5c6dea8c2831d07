"""A trained model in one file, model.npz: weights, sizes, vocabulary and normaliser, all that transcription needs.

A model file may come from a stranger.  checkpoint.py ensures that loading takes no more memory than the file is
long; here everything is compared with what the declared sizes ask for, before anything of these sizes is made.
"""

import math
import reprlib
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from . import UserError, checkpoint, vocabulary_file
from .bpe import BPE
from .conformer import ConformerConfig
from .features import NUM_FEATURES, Normaliser
from .transducer import Transducer, TransducerConfig, count_parameters

TRAINING = ("updates", "skipped_updates", "seconds", "best_dev_wer", "best_dev_loss")  # what train.py reports


def save_model(path, model, normaliser, bpe, **about):
    """Write the model and all that it needs; `about` holds further facts about it, as JSON-able values."""
    arrays = {f"weights/{name}": p.data for name, p in model.named_parameters().items()}
    arrays |= {"normaliser/mean": normaliser.mean, "normaliser/std": normaliser.std}
    meta = {"model": model.config_dict(), "vocabulary": vocabulary_file.to_dict(bpe), "about": about}
    checkpoint.save(path, arrays, meta)


def load_model(path):
    """-> (Transducer, Normaliser, BPE, about); a foreign or damaged file is a UserError of one sentence."""
    arrays, meta = checkpoint.load(path)
    try:
        model, normaliser = _build(arrays, meta.get("model"))
        about = _checked(meta.get("about"))
    except (ValueError, UserError) as error:
        raise UserError(
            f"{path} is a mini_pkd file but not a model that this version can load ({error}): "
            f"give a model.npz that mini_pkd.cascade wrote."
        ) from None
    bpe = vocabulary_file.from_dict(meta.get("vocabulary"), f"the vocabulary in {path}")
    if bpe.size != model.config.symbols:
        raise UserError(
            f"{path} holds a model over {model.config.symbols} symbols and a vocabulary of {bpe.size}: "
            f"they do not belong together, train the model again."
        )
    return model, normaliser, bpe, about


def _build(arrays, sizes):
    """The Transducer of these sizes and the Normaliser, from exactly these arrays."""
    _check_sizes(sizes, asdict(TransducerConfig()))
    config = TransducerConfig.from_dict(sizes)
    encoder = config.encoder
    if encoder.features != NUM_FEATURES:
        raise ValueError(f"it takes {encoder.features} features, not {NUM_FEATURES}")
    declared = count_parameters(config) + 2 * NUM_FEATURES
    found = sum(array.size for array in arrays.values())
    # Every block and layer has arrays of its own, so the last comparison keeps a million blocks of width 1 away.
    if declared != found or encoder.blocks + config.lstm_layers > len(arrays):
        raise ValueError(f"its sizes ask for {declared} numbers, and it holds {found} in {len(arrays)} arrays")
    model = Transducer(config, np.random.default_rng(0))
    arrays = dict(arrays)
    for name, p in model.named_parameters().items():
        p.data = _take(arrays, f"weights/{name}", p.shape)
    normaliser = Normaliser(*(_take(arrays, f"normaliser/{name}", (NUM_FEATURES,)) for name in ("mean", "std")))
    return model, normaliser  # nothing is left over: the numbers are counted above


def _check_sizes(values, known):
    """The keys of `known`, and whole numbers that an array can have as its size."""
    if not isinstance(values, dict) or values.keys() != known.keys():
        raise ValueError(f"its sizes are not {', '.join(known)}")
    for key, value in values.items():
        if isinstance(known[key], dict):
            _check_sizes(value, known[key])
        elif type(value) is not int or not (key != "pools") <= value < 2**31:
            raise ValueError(f"its {key} is {reprlib.repr(value)}")


def _take(arrays, name, shape):
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"there is no {name}")
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"{name} has shape {array.shape} and type {array.dtype} instead of {shape} and float32")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds numbers that are not finite")
    return array


def _checked(about):
    """The facts that save_model was given; a training among them must have the numbers that reports show."""
    if not isinstance(about, dict):
        raise ValueError("it lacks the facts about itself")
    training = about.get("training", {})
    if not isinstance(training, dict):
        raise ValueError("it does not say how it was trained")
    for key in TRAINING if "training" in about else ():
        value = training.get(key)
        if not (type(value) is float and not math.isnan(value) or type(value) is int and abs(value) < 2**53):
            raise ValueError(f"{key} of its training is not a number")
    return about


def demo():
    bpe = BPE.train({"ONE": 5, "TONE": 2}, 8)
    encoder = ConformerConfig(blocks=3, width=16, heads=2, window=8, kernel=4, expansion=2)
    model = Transducer(TransducerConfig(encoder, bpe.size, 16, 1, 16), np.random.default_rng(0))
    normaliser = Normaliser(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        save_model(path, model, normaliser, bpe, name="T1")
        print(f"{model.num_parameters()} numbers, {path.stat().st_size} bytes")
        loaded, _, _, about = load_model(path)
        pairs = zip(loaded.named_parameters().values(), model.named_parameters().values(), strict=True)
        same = all(np.array_equal(a.data, b.data) for a, b in pairs)
        print(f"{about['name']} comes back with the same weights: {same}")
        arrays, meta = checkpoint.load(path)
        meta["model"]["symbols"] = 10**9  # 64 GB, if load_model believed it
        checkpoint.save(path, arrays, meta)
        try:
            load_model(path)
        except UserError as error:
            print("refused:", str(error).replace(folder, "."))


if __name__ == "__main__":
    demo()
