"""A corpus prepared in one call: its vocabulary, its normaliser, and each part in the form that it is used in.

    corpus = prepare_corpus("data_small/numbers", "runs/features", TINY.settings)
    corpus.bpe, corpus.normaliser           of the training set alone
    corpus.train, corpus.dev                Parts: batches with labels
    corpus.tests["test-clean"]              a FeatureStore: test sets keep their texts, and every utterance

The features are computed once and kept on disk (feature_store.py); the second call takes a moment.
"""

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import UserError
from .bpe import BPE, word_counts
from .command import printable
from .conformer import ConformerConfig
from .corpus import collate, epoch_batches, pack, usable_utterances
from .corpus_folder import Problem, doubts, find_parts, missing_roles, read_part
from .feature_store import FeatureStore, estimate_normaliser
from .features import Normaliser

TEST_SETS = ("test-clean", "test-other")
REPOSITORY = Path(__file__).resolve().parent.parent
REDUCTION = 2**ConformerConfig.pools  # feature rows per row of the encoder


@dataclass
class Part:
    """A feature store with the label ids of its utterances, and which of them can be used."""

    store: FeatureStore
    targets: list  # one int64 array per utterance, None where the vocabulary lacks a character
    indices: np.ndarray

    @classmethod
    def encode(cls, store, bpe, max_frames=None, reduction=REDUCTION, strict=False):
        """-> (Part, problems); an utterance with unknown characters, too long or too short, is left out and a Problem.

        strict: a transcript with unknown characters is a UserError.
        """
        targets, spelled, problems = [], [], []
        for i, text in enumerate(store.texts):
            try:
                targets.append(np.array(bpe.encode(text), dtype=np.int64))
                spelled.append(i)
            except UserError as error:
                targets.append(None)
                problems.append(Problem(store.ids[i], str(error)))
        if strict and problems:
            raise UserError(f"utterance {problems[0]}; leave out --strict to skip and list it.")
        lengths = np.asarray(store.lengths)[spelled]
        label_lengths, ids = [len(targets[i]) for i in spelled], [store.ids[i] for i in spelled]
        kept, misfits = usable_utterances(lengths, label_lengths, reduction, max_frames, ids)
        problems += misfits
        if not kept:
            raise UserError(
                f"no utterance in {store.folder} can be used (the first problem is {problems[0]}); "
                f"check transcripts, or raise max_frames."
            )
        kept = np.array(spelled, dtype=np.int64)[kept]
        return cls(store, targets, kept), problems

    def batch(self, indices):
        """The ragged Batch of these utterances."""
        return collate(self.store, indices, self.targets)

    def sample(self, count, rng):
        """A Part of `count` of its utterances, drawn by `rng`; 0, or more than there are: all of them."""
        if not 0 < count < len(self.indices):
            return self
        return dataclasses.replace(self, indices=np.sort(rng.choice(self.indices, count, replace=False)))

    def micro_batches(self, indices, max_frames):
        """The same as Batches of at most max_frames frames each (a longer utterance alone); 0: all in one."""
        if not max_frames:
            return [self.batch(indices)]
        return [self.batch(group) for group in pack(np.asarray(indices), self.store.lengths, max_frames, len(indices))]

    def batches(self, max_frames, max_utterances, **options):
        """Groups of indices; see corpus.epoch_batches."""
        return epoch_batches(self.store.lengths, max_frames, max_utterances, indices=self.indices, **options)


@dataclass
class PreparedCorpus:
    """What `prepare_corpus` returns."""

    bpe: BPE
    normaliser: Normaliser
    train: Part
    dev: Part
    tests: dict  # {test set: FeatureStore}
    problems: list  # of utterances and files that were left out


def prepare_corpus(data, features, settings, make_bpe=None, reduction=REDUCTION, strict=False, progress=True,
                   say=None):  # fmt: skip
    """A folder in LibriSpeech's layout -> PreparedCorpus.

    features    folder below which the features of each part are kept
    settings    Settings: vocab_size, max_frames and feature_type are read here
    make_bpe    training utterances -> BPE; by default a new one is trained
    strict      the first utterance that cannot be used is a UserError, not a Problem
    say         prints a sentence: what the corpus lacks, and what it has
    """
    found = find_parts(data)
    missing = missing_roles(found)
    if missing and say:
        say(missing)
    parts, utterances, problems = {}, {}, []
    for role, folders in found.items():
        parts[role], seen = {}, {}
        for folder in folders:
            parts[role][folder], bad = read_part(folder, strict)
            problems += bad
            for u in parts[role][folder]:  # mini LibriSpeech's utterances are some of LibriSpeech's
                if seen.setdefault(u.id, u) is not u:
                    problems.append(Problem(str(u.audio), f"the id {u.id} stands in {seen[u.id].audio}, too"))
        utterances[role] = list(seen.values())
    for sentence in doubts(Path(data), parts) if say else ():
        say(sentence)
    if make_bpe is None:
        bpe = BPE.train(word_counts(utterance.text for utterance in utterances["train"]), settings.vocab_size, progress)
    else:
        bpe = make_bpe(utterances["train"])
    stores = {}
    for role, listed in utterances.items():
        if listed:
            stores[role] = FeatureStore.build(
                features_folder(features, data, role, settings.feature_type),
                listed,
                dtype=np.dtype(settings.feature_type),
                strict=strict,
                label=f"features of {role}" if progress else None,
            )
            problems += [Problem(f"{role} {p.where}", p.reason) for p in stores[role].problems]
    normaliser = estimate_normaliser([stores["train"]])
    for store in stores.values():
        store.normaliser = normaliser
    encoded = {}
    for role in ("train", "dev"):
        encoded[role], bad = Part.encode(stores[role], bpe, settings.max_frames, reduction, strict)
        problems += [Problem(f"{role} {p.where}", p.reason) for p in bad]
    # Test sets keep every utterance: a character that is not in the vocabulary is an error of every model.
    tests = {role: stores[role] for role in TEST_SETS if role in stores}
    if say:
        hours = ", ".join(f"{role} {store.num_rows / 360000:.2f} h" for role, store in stores.items())
        asked = settings.vocab_size
        fewer = f" (of the {asked} asked for: there is no more to merge)" if bpe.size < asked else ""
        say(f"{corpus_name(data)}: {hours}; {bpe.size} symbols{fewer}")
    return PreparedCorpus(bpe, normaliser, encoded["train"], encoded["dev"], tests, problems)


def features_folder(features, data, role, feature_type):
    """The folder of a part's features, shared by all runs that want the same.

    Two corpora of the same name have two folders, and so have two types, or runs would overwrite each other's features.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(data))).hexdigest()[:8]
    return Path(features) / f"{corpus_name(data)}-{role}-{feature_type}-{digest}"


def corpus_name(data):
    """What a corpus is called in a run's files.  (A loop of links is an error in Path.resolve, but not in realpath.)"""
    return printable(os.path.basename(os.path.realpath(data)))


def default_data(relative):
    """In a clone, data_small/ stands beside the package; otherwise the path starts from the current folder."""
    beside = REPOSITORY / relative
    return beside if beside.is_dir() else Path(relative)
