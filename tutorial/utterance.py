"""The utterance that all notebooks follow: heard in 01, seen in 03, aligned in 07, streamed in 12.

A rule chooses it, not an id, so that the corpus may be made anew: the first of test-clean, in the order of ids, that
has WORDS words and lasts between SHORTEST and LONGEST seconds.
"""

from collections import namedtuple
from functools import cache

import numpy as np

from mini_pkd import UserError
from mini_pkd.audio_file import read_audio
from mini_pkd.corpus_folder import EXAMPLE, find_parts, read_part
from mini_pkd.features import SAMPLE_RATE, mfcc
from mini_pkd.ragged import Batch

DATA = EXAMPLE  # data_small/numbers
WORDS, SHORTEST, LONGEST = 5, 2.2, 2.6

Spoken = namedtuple("Spoken", "id text wave path seconds")  # wave (n,) float32 in [-1, 1] at 16 kHz


def part(name):
    """The utterances of "train", "dev", "test-clean" or "test-other", in the order of their ids."""
    return sorted((u for folder in find_parts(DATA)[name] for u in read_part(folder)[0]), key=lambda u: u.id)


def hear(utterance):
    """One of those utterances with its samples -> Spoken."""
    wave = read_audio(utterance.audio)
    return Spoken(utterance.id, utterance.text, wave, utterance.audio, len(wave) / SAMPLE_RATE)


@cache
def load():
    """The utterance of the tutorial, Spoken."""
    for utterance in part("test-clean"):
        if len(utterance.text.split()) == WORDS and SHORTEST <= (spoken := hear(utterance)).seconds <= LONGEST:
            spoken.wave.setflags(write=False)  # there is one for all
            return spoken
    raise UserError(f"test-clean has no utterance of {WORDS} words and {SHORTEST} to {LONGEST} s; change the rule.")


def batch(several, recogniser):
    """A list of Spoken, laid end to end as training takes them -> ragged.Batch, with that recogniser's units."""
    rows = [recogniser.normaliser(mfcc(spoken.wave)) for spoken in several]
    labels = [np.array(recogniser.bpe.encode(spoken.text), dtype=np.int64) for spoken in several]
    lengths, label_lengths = np.array([len(x) for x in rows]), np.array([len(y) for y in labels])
    return Batch(
        [spoken.id for spoken in several], np.concatenate(rows), lengths, np.concatenate(labels), label_lengths
    )
