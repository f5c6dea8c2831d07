"""The corpus: what a folder of speech looks like, which utterances train, and how they form batches.

LibriSpeech is a folder of parts; a part has one folder per speaker and, in it, one per chapter of a book:

    LibriSpeech/
        train-clean-100/
            103/                         a speaker
                1240/                    a chapter
                    103-1240-0000.flac   an utterance: a sentence or two, up to 35 seconds
                    103-1240-0001.flac
                    103-1240.trans.txt   a line for each: 103-1240-0000 CHAPTER ONE MISSUS RACHEL LYNDE ...
        dev-clean/  test-clean/  ...

Any folder of this shape will do; data_small/ holds two.  `find_parts` (corpus_folder.py) says which parts train, which
select models and which test; `read_part` lists the utterances of one, that is id, speaker, audio file and text.
feature_store.py computes their features once and keeps them.  From then on an utterance is an index:

    usable_utterances   the indices of those that can be trained on
    epoch_batches       groups of them for one epoch: similar lengths, in an order that changes from epoch to epoch
    collate             a group as one ragged `Batch`

A bad utterance stops nothing: it is left out and listed as a `Problem`.  Everything random is a function of
(seed, epoch), so a resumed run sees the same batches.

`python -m mini_pkd.corpus DIR` counts the utterances, hours and problems of every part.
"""

import sys

import numpy as np

from . import UserError
from .audio_file import read_audio
from .command import Parser, command
from .corpus_folder import EXAMPLE, Problem, find_parts, print_counts, read_part
from .features import NUM_FEATURES, mfcc
from .ragged import Batch
from .seeds import generator

# Speech has about one unit per encoder row of 80 ms.  A transcript with more than five times that, on average over the
# utterance, belongs to another recording.  (decode.MAX_SYMBOLS limits a single row, and must not be smaller.)
MAX_LABELS_PER_ROW = 5

JITTER = 0.1  # of an utterance's length, before utterances are sorted by length


def usable_utterances(frames, label_lengths, reduction, max_frames=None, ids=None):
    """Which utterances can be trained on? -> (their indices, problems).

    frames and label_lengths count the feature rows and the units of each utterance; the encoder makes one row of
    `reduction` frames.  A transducer may emit several symbols in one row, so it could be trained on the transcript of
    another recording, too, however long; that would teach it nonsense.

    >>> usable_utterances([240, 0, 16], [12, 1, 11], reduction=8)[0]  # 30 rows, no rows, 2 rows
    [0]
    """
    usable, problems = [], []
    for i, (num_frames, U) in enumerate(zip(frames, label_lengths, strict=True)):
        T = -(-int(num_frames) // reduction)  # each pooling rounds up, and so does this
        if T < 1:
            reason = "too short: the encoder leaves no row of it"
        elif U > MAX_LABELS_PER_ROW * T:
            reason = (
                f"{U} labels for {T} encoder rows, where {MAX_LABELS_PER_ROW} a row are the limit; "
                f"check that the transcript belongs to this audio"
            )
        elif max_frames is not None and num_frames > max_frames:
            reason = f"too long: {num_frames} frames where {max_frames} are the limit"
        else:
            usable.append(i)
            continue
        problems.append(Problem(str(i) if ids is None else ids[i], reason))
    return usable, problems


def pack(indices, lengths, max_frames, max_utterances):
    """Cut a sequence of utterances into batches, each as large as both limits allow."""
    batches, frames = [], 0
    for i in indices.tolist():
        T = int(lengths[i])
        if not batches or frames + T > max_frames or len(batches[-1]) == max_utterances:
            batches.append([])
            frames = 0
        batches[-1].append(i)
        frames += T
    return batches


def epoch_batches(lengths, max_frames, max_utterances, seed=0, epoch=0, shuffle=True, indices=None,
                  curriculum_epochs=0, curriculum_fraction=0.5):  # fmt: skip
    """Group utterances of similar length -> the epoch's batches, each a list of indices into `lengths`.

    A batch has at most max_frames frames and max_utterances utterances.  Utterances are sorted by length, with a
    little random jitter so that epochs differ, and cut into batches, whose order is shuffled; both are functions of
    (seed, epoch) alone.  Decoding sets shuffle=False, which sorts by length alone.  `indices` restricts to a subset,
    such as the usable utterances.

    Curriculum: in epoch e < curriculum_epochs only the shortest utterances take part, curriculum_fraction of them in
    epoch 0, growing linearly to all of them; and epoch 0 runs its batches from short to long.

    >>> epoch_batches([30, 10, 31, 11, 12], max_frames=40, max_utterances=8, shuffle=False)
    [[1, 3, 4], [0], [2]]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    indices = np.arange(len(lengths)) if indices is None else np.asarray(indices, dtype=np.int64)
    if max_frames < 1 or max_utterances < 1:
        raise UserError(
            f"a batch must hold at least one frame and one utterance, but max_frames is {max_frames} and "
            f"max_utterances is {max_utterances}: raise them."
        )
    if len(indices) and lengths[indices].max() > max_frames:
        raise UserError(
            f"an utterance has {int(lengths[indices].max())} frames but a batch holds {max_frames}: "
            f"raise max_frames or leave long utterances out."
        )
    rng = generator(seed, "batches", epoch)
    if epoch < curriculum_epochs:
        fraction = curriculum_fraction + (1 - curriculum_fraction) * epoch / curriculum_epochs
        keep = max(1, round(fraction * len(indices)))
        indices = np.sort(indices[np.argsort(lengths[indices], kind="stable")[:keep]])  # the shortest ones
    keys, ties = np.log(np.maximum(lengths[indices], 1)), np.arange(len(indices))
    if shuffle:
        keys = keys + JITTER * rng.standard_normal(len(keys))
        ties = rng.permutation(len(keys))
    batches = pack(indices[np.lexsort((ties, keys))], lengths, max_frames, max_utterances)
    if shuffle and not (epoch == 0 and curriculum_epochs):
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def collate(store, indices, targets):
    """Utterances of a feature store -> one ragged Batch; `targets[i]` holds the label ids of utterance i."""
    lengths = np.array([store.lengths[i] for i in indices], dtype=np.int64)  # (B,)
    features = np.empty((int(lengths.sum()), NUM_FEATURES), dtype=np.float32)
    for stop, T, i in zip(np.cumsum(lengths), lengths, indices, strict=True):
        features[stop - T : stop] = store[i]
    labels = [np.asarray(targets[i], dtype=np.int64) for i in indices]
    ids, label_lengths = [store.ids[i] for i in indices], np.array([len(u) for u in labels], dtype=np.int64)  # (B,)
    return Batch(ids, features, lengths, np.concatenate(labels), label_lengths)


# --- the command ----------------------------------------------------------------------------------


def demo(root=EXAMPLE):
    folder = find_parts(root)["train"][0]
    utterances, problems = read_part(folder)
    print(f"{folder.name}: {len(utterances)} utterances, {len(problems)} problems")
    lengths = np.array([len(mfcc(read_audio(u.audio))) for u in utterances[:40]])
    print(f"{utterances[0].id} ({lengths[0]} frames of 10 ms): {utterances[0].text}")
    print("the first 40 utterances as batches of at most 8 utterances and 4000 frames:")
    for batch in epoch_batches(lengths, max_frames=4000, max_utterances=8):
        print(f"  {len(batch)} utterances, {lengths[batch].sum():4d} frames: {lengths[batch].tolist()}")


@command("corpus")
def main(arguments=None):
    parser = Parser("corpus", description="Count utterances, hours and problems of a corpus.")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="a corpus, or one part of it (default: a demo)")
    parser.add_argument("--strict", action="store_true", help="stop at the first problem, exit status 1")
    options = parser.parse_args(arguments)
    if options.folder is not None:
        problems = print_counts(options.folder, options.strict)
        return 1 if options.strict and problems else 0
    demo()


if __name__ == "__main__":
    sys.exit(main())
