"""Six utterances of data_small, and models that are small enough to learn them in a test."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mini_pkd.bpe import BPE, word_counts
from mini_pkd.corpus_folder import read_part
from mini_pkd.feature_store import FeatureStore, estimate_normaliser
from mini_pkd.prepared_corpus import Part
from mini_pkd.scales import TINY, Size
from mini_pkd.seeds import generator
from mini_pkd.transducer import Transducer

NUMBERS = Path(__file__).resolve().parent.parent / "data_small" / "numbers"
SIZE = Size(blocks=3, width=48, heads=4, window=16, kernel=8, expansion=2, joint_width=48, lstm_layers=1, lstm_width=48)
SETTINGS = dataclasses.replace(
    TINY.settings, batch_utterances=3, peak_rate=4e-3, warmup_steps=20, epochs=3, dev_every=1, checkpoint_minutes=60.0
)


@pytest.fixture(scope="session")
def handful(tmp_path_factory):
    """Six short utterances of different lengths: (Part, BPE, normaliser)."""
    utterances, _ = read_part(NUMBERS / "train")
    store = FeatureStore.build(tmp_path_factory.mktemp("store"), utterances[:40:7])
    store.normaliser = normaliser = estimate_normaliser([store])
    assert len(set(store.lengths.tolist())) > 3
    bpe = BPE.train(word_counts(u.text for u in utterances), 48)
    part, problems = Part.encode(store, bpe)
    assert not problems
    return part, bpe, normaliser


def new_model(bpe, seed=0, size=SIZE):
    return Transducer(size.config(bpe.size), generator(seed, "weights"))


def weights(model):
    return np.concatenate([p.data.ravel() for p in model.named_parameters().values()])


class StopAfter:
    """A StopSignal whose flag goes up at the n-th look."""

    def __init__(self, looks):
        self.looks = looks

    @property
    def raised(self):
        self.looks -= 1
        return self.looks < 0
