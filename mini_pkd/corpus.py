"""The corpus: LibriSpeech-shaped folders, and ragged batches of their utterances.

    folders    <part>/<speaker>/<chapter>/ holds one audio file per utterance and a *.trans.txt whose lines
               read `ID TEXT`. `read_part` lists a part's utterances, `find_parts` says which parts
               train, which select models, and which test.
    batches    `make_batches` groups utterances of similar length under a budget of frames; `collate`
               turns a group into a ragged `Batch`: rows end to end plus lengths, no padding.

Between the two stand the features of all utterances, computed once: feature_store.py.

Single bad utterances never stop anything: they are skipped and listed as `Problem`s, unless `strict`.
Everything that is random is a function of (seed, epoch), so a resumed run sees the same batches.

`python -m mini_pkd.corpus DIR` looks a corpus over: utterances, hours, problems of every part.
"""

import contextlib
import errno
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from . import UserError
from .bpe import MARKER
from .command import Parser, command
from .features import NUM_FEATURES, mfcc, read_audio
from .ragged import Batch
from .seeds import generator

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus")
TRANSCRIPT_SUFFIX = ".trans.txt"
SHAPE = (
    "a part in LibriSpeech's shape holds <speaker>/<chapter>/ folders, each with one audio file per "
    "utterance (.flac, .wav, .ogg) and a .trans.txt file whose lines read `ID TEXT`"
)

# Which folders play which role. A part counts when its folder exists; train parts are used together.
ROLES = {
    "train": ("train", "train-clean-100", "train-clean-360", "train-other-500", "train-clean-5"),
    "dev": ("dev", "dev-clean", "dev-other", "dev-clean-2"),
    "test-clean": ("test-clean",),
    "test-other": ("test-other",),
}


@dataclass(frozen=True)
class Utterance:
    """One utterance of a part, and where its audio lies."""

    id: str
    speaker: str
    audio: Path
    text: str


@dataclass(frozen=True)
class Problem:
    """One utterance or file that was left out, and why."""

    where: str
    reason: str

    def __str__(self):
        return printable(f"{self.where}: {self.reason}")


def printable(text):
    r"""One line that any UTF-8 file or terminal takes: the name of a file may hold any bytes but / and NUL.

    >>> print(printable("café \udce9\n"))
    café \udce9\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def disk_errors(folder):
    """A full disk or an unwritable folder is the user's to mend: say it in a sentence."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output has left: see command.py
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"the disk of {folder} is full: make room and run the same command again, "
                f"it continues where it stopped."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"{error.filename or folder} cannot be written or read ({error.strerror}): "
                f"change its permissions or choose another folder."
            ) from None
        raise UserError(
            f"{error.filename or folder} cannot be used ({error.strerror or error}): "
            f"look at what is there, or choose another folder."
        ) from None


def progress_bar(label, **settings):
    """A progress bar with ETA on stderr, updated rarely when it goes to a log file; none without label."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=label, disable=label is None, mininterval=interval, dynamic_ncols=True, **settings)


# --- folders ---------------------------------------------------------------------------------------------------------


def scan(folder):
    """(subfolders, files, others) of a folder, as sorted lists of (name, path); hidden names are passed over.

    Others cannot be read: links that lead nowhere or in circles, and pipes, which would keep a reader waiting for ever.
    """
    folders, files, others = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):  # .DS_Store, ._copy, and our own markers
                try:
                    kind = folders if entry.is_dir() else files if entry.is_file() else others
                except OSError:  # a loop of links
                    kind = others
                kind.append((entry.name, entry.path))
    return sorted(folders), sorted(files), sorted(others)


def read_part(folder, strict=False):
    """One part's folder -> (utterances in order of their ids' folders, problems).

    An utterance needs a line in a *.trans.txt and an audio file of that name beside it. What lacks
    one of the two, is empty, malformed or there twice becomes a Problem; with strict, a UserError.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"the corpus folder {folder} {_no_folder(folder)}: give the path of a part; {SHAPE}.")
    utterances, problems, seen = [], [], {}

    def problem(where, reason):
        if strict:
            raise UserError(f"{Problem(str(where), reason)} (leave out --strict to skip and list it).")
        problems.append(Problem(str(where), reason))

    def look(place):
        """scan, but whatever cannot be read is a problem."""
        try:
            folders, files, others = scan(place)
        except OSError as error:
            problem(place, f"this folder cannot be read ({error.strerror}); look at its permissions")
            return [], []
        for _, path in others:
            problem(path, "neither a file nor a folder (a link that leads nowhere, a pipe or a device); remove it")
        return folders, files

    for speaker, speaker_path in look(folder)[0]:
        chapters, loose = look(speaker_path)
        if any(name.endswith(TRANSCRIPT_SUFFIX) for name, _ in loose):
            problem(speaker_path, "a transcript outside any <chapter> folder; move it into one")
        for _, chapter_path in chapters:
            _read_chapter(speaker, look(chapter_path)[1], utterances, problem, seen)
    if not utterances:
        detail = f"; the first of {len(problems)} problems is {problems[0]}" if problems else ""
        raise UserError(f"no utterance was found in {folder}: {SHAPE}{detail}.")
    return utterances, problems


def _no_folder(path):
    """Why something is not a folder.  os.path, because Path's methods raise for a path that is too long."""
    return "is not a folder" if os.path.lexists(path) else "does not exist"


def _read_chapter(speaker, files, utterances, problem, seen):
    audio, transcripts = {}, []
    for name, path in files:
        stem, suffix = os.path.splitext(name)
        if name.endswith(TRANSCRIPT_SUFFIX):
            transcripts.append(path)
        elif suffix.lower() in AUDIO_SUFFIXES:
            if stem in audio:
                problem(path, f"a second audio file for {stem}; the first, {audio[stem]}, is used")
            else:
                audio[stem] = path
    unheard = dict(audio)  # audio that no transcript line has claimed so far
    for path in transcripts:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            problem(path, "this transcript is not UTF-8 text; convert it")
            continue
        except OSError as error:
            problem(path, f"this transcript cannot be read ({error.strerror}); look at its permissions")
            continue
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            name = words[0]
            unheard.pop(name, None)
            if name in seen:
                problem(f"{path} line {number}", f"the id {name} stands twice, first in {seen[name]}")
            elif name not in audio and len(words) > 1:
                problem(f"{path} line {number}", f"no audio file for {name} in that folder")
            elif name not in audio:
                problem(f"{path} line {number}", f"malformed line {line.strip()[:60]!r}, expected `ID TEXT`")
            elif len(words) == 1:
                seen[name] = path
                problem(f"{path} line {number}", f"the transcript of {name} is empty")
            else:
                seen[name] = path
                utterances.append(Utterance(name, speaker, Path(audio[name]), " ".join(words[1:])))
    for name, path in unheard.items():
        problem(path, f"no transcript line for {name}")


def find_parts(root, required=("train", "dev")):
    """A corpus's root folder -> {role: [folders]} for train, dev, test-clean, test-other.

    The root may be one of data_small's corpora (parts named train, dev, ...), a LibriSpeech folder
    (train-clean-100, ...), mini LibriSpeech (train-clean-5, dev-clean-2), or the folder above one that is
    called LibriSpeech. A role whose parts are absent gets an empty list; a UserError if it is required.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise UserError(
            f"the data folder {root} {_no_folder(root)}: give a folder with parts such as train or train-clean-100; "
            f"{SHAPE}."
        )
    for candidate in (root, root / "LibriSpeech"):
        parts = {
            role: [candidate / name for name in names if os.path.isdir(candidate / name)]
            for role, names in ROLES.items()
        }
        if any(parts.values()):
            break
    missing = [role for role in required if not parts[role]]
    if missing:
        wanted = " and ".join(f"{role} (one of {', '.join(ROLES[role])})" for role in missing)
        with disk_errors(root):
            inside = ", ".join(name for name, _ in scan(root)[0][:8]) or "no folders at all"
        raise UserError(
            f"the data folder {root} has no part for {wanted}; it holds {inside}: choose a folder whose "
            f"parts have these names; {SHAPE}."
        )
    return parts


def missing_roles(parts):
    """One sentence about the roles without a part, '' when nothing is missing."""
    missing = [role for role, folders in parts.items() if not folders]
    if not missing:
        return ""
    return f"This corpus has no {' and no '.join(missing)}, so nothing will be reported for it."


def word_counts(utterances):
    """{word: how often} over the transcripts: what BPE trains on, hence without words that hold its marker."""
    counts = Counter()
    for utterance in utterances:
        counts.update(utterance.text.split())
    return {word: count for word, count in counts.items() if MARKER not in word}


# --- batches ---------------------------------------------------------------------------------------------------------


def check_lattice(rows, label_lengths, max_symbols_per_row=5, frames=None, max_frames=None, ids=None):
    """Which utterances can be trained on? -> (kept indices, problems).

    rows: encoder output rows per utterance (frames / 8, rounded up, for the paper's encoder); label_lengths: units.
    A transducer may emit several symbols in one row, so its lattice exists for any T >= 1; but decoding
    bounds the symbols per row, and speech has about one unit per 80 ms. More than
    `max_symbols_per_row` times the rows is a transcript that does not belong to its audio.
    """
    kept, problems = [], []
    pairs = zip(np.asarray(rows).tolist(), np.asarray(label_lengths).tolist(), strict=True)
    for i, (T, U) in enumerate(pairs):
        where = str(i) if ids is None else ids[i]
        if T < 1:
            problems.append(Problem(where, "too short: the encoder leaves no row of it"))
        elif U > max_symbols_per_row * T:
            reason = f"{U} labels exceed {T} encoder rows x {max_symbols_per_row}; is it its transcript?"
            problems.append(Problem(where, reason))
        elif max_frames is not None and frames[i] > max_frames:
            reason = f"too long: {int(frames[i])} frames where {max_frames} are the limit"
            problems.append(Problem(where, reason))
        else:
            kept.append(i)
    return kept, problems


def make_batches(
    lengths,
    max_frames,
    max_utterances,
    seed=0,
    epoch=0,
    shuffle=True,
    jitter=0.1,
    indices=None,
    curriculum_epochs=0,
    curriculum_fraction=0.5,
):
    """Group utterances of similar length -> list of lists of indices into `lengths`.

    A batch has at most max_frames frames and max_utterances utterances. Lengths are jittered by about
    `jitter` (relative) before sorting, so that batches differ from epoch to epoch, and the order of the
    batches is shuffled; both are functions of (seed, epoch) alone. shuffle=False sorts plainly: for
    decoding. `indices` restricts to a subset, such as what `check_lattice` kept.

    Curriculum: in epoch e < curriculum_epochs only the shortest utterances take part, from
    curriculum_fraction of them in epoch 0 growing linearly to all of them; and epoch 0 runs its batches
    from short to long.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    indices = np.arange(len(lengths)) if indices is None else np.asarray(indices, dtype=np.int64)
    if max_frames < 1 or max_utterances < 1:
        raise UserError(
            f"a batch needs room for a frame and an utterance, but max_frames is {max_frames} and "
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
        indices = np.sort(indices[np.argsort(lengths[indices], kind="stable")[:keep]])
    keys = np.log(np.maximum(lengths[indices], 1))
    if shuffle:
        keys = keys + jitter * rng.standard_normal(len(keys))
        ties = rng.permutation(len(keys))
    else:
        ties = np.arange(len(keys))
    batches, current, frames = [], [], 0
    for i in indices[np.lexsort((ties, keys))].tolist():
        T = int(lengths[i])
        if current and (frames + T > max_frames or len(current) == max_utterances):
            batches.append(current)
            current, frames = [], 0
        current.append(i)
        frames += T
    if current:
        batches.append(current)
    if shuffle and not (epoch == 0 and curriculum_epochs):
        batches = [batches[i] for i in rng.permutation(len(batches))]
    return batches


def collate(store, indices, targets):
    """Utterances of a FeatureStore -> one ragged Batch. `targets[i]` holds the label ids of utterance i."""
    indices = [int(i) for i in indices]
    lengths = np.array([store.lengths[i] for i in indices], dtype=np.int64)  # (B,)
    features = np.empty((int(lengths.sum()), NUM_FEATURES), dtype=np.float32)
    for stop, T, i in zip(np.cumsum(lengths), lengths, indices, strict=True):
        features[stop - T : stop] = store[i]
    labels = [np.asarray(targets[i], dtype=np.int64) for i in indices]
    return Batch(
        ids=[store.ids[i] for i in indices],
        features=features,
        lengths=lengths,
        labels=np.concatenate([*labels, np.zeros(0, dtype=np.int64)]),
        label_lengths=np.array([len(u) for u in labels], dtype=np.int64),
    )


# --- the command -----------------------------------------------------------------------------------------------------


def check(root, strict=False, show=10):
    """Print utterances, hours and problems of every part below `root`; returns the number of problems."""
    parts = find_parts(root, required=())
    folders = [folder for role in parts.values() for folder in role]
    if not folders:  # perhaps the folder of one part
        folders = [Path(root)]
    print(f"{'part':18s} {'utterances':>10s} {'speakers':>8s} {'words':>9s} {'hours':>8s} {'problems':>8s}")
    bad = 0
    for folder in folders:
        name = printable(folder.name)
        utterances, problems = read_part(folder, strict)
        seconds = 0.0
        for utterance in progress_bar(name, iterable=utterances, unit="utt", leave=False):
            try:
                info = soundfile.info(os.fsencode(utterance.audio))
                if info.frames == 0 or info.channels != 1:
                    reason = "holds no samples" if info.frames == 0 else f"has {info.channels} channels"
                    problems.append(Problem(str(utterance.audio), reason))
                seconds += info.frames / info.samplerate
            except (soundfile.SoundFileError, RuntimeError, OSError) as error:
                reason = " ".join(str(error).split())
                problems.append(Problem(str(utterance.audio), f"cannot be read as audio ({reason})"))
        words = sum(len(u.text.split()) for u in utterances)
        speakers = len({u.speaker for u in utterances})
        print(
            f"{name:18s} {len(utterances):10d} {speakers:8d} {words:9d} {seconds / 3600:8.2f} "
            f"{len(problems):8d}"
        )
        for problem in problems[:show]:
            print(f"    {problem}")
        if len(problems) > show:
            print(f"    and {len(problems) - show} more")
        bad += len(problems)
    if folders != [Path(root)]:
        print(missing_roles(parts) or "Every role (train, dev, test-clean, test-other) has its part.")
    return bad


def demo(root):
    """What training will see of data_small: an utterance, its frames, one epoch's batches."""
    folder = find_parts(root)["train"][0]
    utterances, problems = read_part(folder)
    print(f"{folder}: {len(utterances)} utterances, {len(problems)} problems")
    first = utterances[0]
    lengths = np.array([len(mfcc(read_audio(u.audio))) for u in utterances[:40]])
    seconds = soundfile.info(str(first.audio)).duration
    print(f"{first.id} ({seconds:.2f} s, {lengths[0]} frames of 10 ms): {first.text}")
    print("the first 40 utterances as batches of at most 8 utterances and 4000 frames:")
    for batch in make_batches(lengths, max_frames=4000, max_utterances=8):
        print(f"  {len(batch)} utterances, {lengths[batch].sum():4d} frames: {lengths[batch].tolist()}")


@command("corpus")
def main(arguments=None):
    parser = Parser(
        "corpus", description="Count utterances, hours and problems of a corpus."
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="a corpus, or one part of it (default: a demo)")
    parser.add_argument("--strict", action="store_true", help="stop at the first problem, exit status 1")
    options = parser.parse_args(arguments)
    if options.folder is not None:
        problems = check(options.folder, options.strict)
        return 1 if options.strict and problems else 0
    demo(Path(__file__).resolve().parent.parent / "data_small" / "numbers")


if __name__ == "__main__":
    sys.exit(main())
