"""The corpus: LibriSpeech-shaped folders, the feature store, ragged batches, and the download.

    folders    <part>/<speaker>/<chapter>/ holds one audio file per utterance and a *.trans.txt whose lines
               read `ID TEXT`. `read_part` lists a part's utterances, `find_parts` says which parts
               train, which select models, and which test.
    store      `FeatureStore.build` computes the MFCC rows of many utterances once and lays them end to
               end in one file that is memory-mapped afterwards: 960 hours are 345 million rows, 55 GB,
               and training touches only the rows of the batch at hand.
    batches    `make_batches` groups utterances of similar length under a budget of frames; `collate`
               turns a group into a ragged `Batch`: rows end to end plus lengths, no padding.
    download   `python -m mini_pkd.corpus download --parts dev-clean --to DIR` fetches LibriSpeech.

Single bad utterances never stop anything: they are skipped and listed as `Problem`s, unless `strict`.
Everything that is random is a function of (seed, epoch), so a resumed run sees the same batches.
"""

import argparse
import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import ssl
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from mini_pkd import UserError
from mini_pkd.features import NUM_FEATURES, RECIPE, Normaliser, mfcc, read_audio
from mini_pkd.specaugment import generator

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
        return f"{self.where}: {self.reason}"


@contextlib.contextmanager
def _disk_errors(folder):
    """A full disk or an unwritable folder is the user's to mend: say it in a sentence."""
    try:
        yield
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


def _bar(label, **settings):
    """A progress bar with ETA on stderr, updated rarely when it goes to a log file; none without label."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(desc=label, disable=label is None, mininterval=interval, dynamic_ncols=True, **settings)


# ---------------------------------------------------------------- folders


def _scan(folder):
    """(subfolders, files) of a folder, as sorted lists of (name, path); hidden names are passed over."""
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):  # .DS_Store, ._copy, and our own markers
                (folders if entry.is_dir() else files).append((entry.name, entry.path))
    return sorted(folders), sorted(files)


def read_part(folder, strict=False):
    """One part's folder -> (utterances in order of their ids' folders, problems).

    An utterance needs a line in a *.trans.txt and an audio file of that name beside it. What lacks
    one of the two, is empty, malformed or there twice becomes a Problem; with strict, a UserError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"the corpus folder {folder} {kind}: give the path of a part; {SHAPE}.")
    utterances, problems, seen = [], [], {}

    def problem(where, reason):
        if strict:
            raise UserError(f"{where}: {reason} (leave out --strict to skip and list it).")
        problems.append(Problem(str(where), reason))

    with _disk_errors(folder):
        for speaker, speaker_path in _scan(folder)[0]:
            chapters, loose = _scan(speaker_path)
            if any(name.endswith(TRANSCRIPT_SUFFIX) for name, _ in loose):
                problem(speaker_path, "a transcript outside any <chapter> folder; move it into one")
            for _, chapter_path in chapters:
                _read_chapter(speaker, chapter_path, utterances, problem, seen)
    if not utterances:
        detail = f"; the first of {len(problems)} problems is {problems[0]}" if problems else ""
        raise UserError(f"no utterance was found in {folder}: {SHAPE}{detail}.")
    return utterances, problems


def _read_chapter(speaker, chapter_path, utterances, problem, seen):
    audio, transcripts = {}, []
    for name, path in _scan(chapter_path)[1]:
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
    if not root.is_dir():
        kind = "is not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"the data folder {root} {kind}: give a folder with parts such as train or train-clean-100; "
            f"{SHAPE}."
        )
    for candidate in (root, root / "LibriSpeech"):
        parts = {
            role: [candidate / name for name in names if (candidate / name).is_dir()]
            for role, names in ROLES.items()
        }
        if any(parts.values()):
            break
    missing = [role for role in required if not parts[role]]
    if missing:
        wanted = " and ".join(f"{role} (one of {', '.join(ROLES[role])})" for role in missing)
        inside = ", ".join(name for name, _ in _scan(root)[0][:8]) or "no folders at all"
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
    """{word: how often} over the transcripts: what BPE trains on."""
    counts = Counter()
    for utterance in utterances:
        counts.update(utterance.text.split())
    return dict(counts)


# ---------------------------------------------------------------- the feature store


CHUNK = 16  # utterances per task of a worker process
COMMIT_BYTES = 1 << 25  # of rows between two entries of the journal: a kill costs at most so much work
SMALL_PART = 400  # up to here, starting worker processes costs more than it saves


def _extract(paths):
    """A worker's task: paths -> [(rows, None) or (None, reason)]."""
    results = []
    for path in paths:
        try:
            results.append((mfcc(read_audio(path)), None))
        except UserError as error:
            results.append((None, str(error)))
    return results


def _fingerprint(utterances, dtype):
    """Changes when the utterances, their transcripts, their files or the feature recipe change.

    A file counts by size and time of change: reading 60 GB just to hash it would be the wrong bargain.
    """
    digest = hashlib.sha256(f"{RECIPE} {np.dtype(dtype).name}".encode())
    for u in utterances:
        try:
            status = os.stat(u.audio)
            stamp = (status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = None
        digest.update(repr((u.id, u.speaker, u.text, stamp)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class FeatureStore:
    """The MFCC rows of many utterances in one memory-mapped file.

    rows.bin     all rows end to end, dtype float32 (or float16 to halve the disk), 40 columns
    index.json   fingerprint, ids, speakers, texts, lengths, problems, and the rows' sums for the normaliser;
                 written last, under a temporary name first: if it exists, the store is complete

    The file holds raw MFCCs. `store[i]` gives (T, 40) float32 rows, normalised when `store.normaliser`
    is set, which costs little and lets one store serve whatever training set the normaliser came from.
    """

    def __init__(self, folder, normaliser=None):
        self.folder, self.normaliser = Path(folder), normaliser
        try:
            index = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            self.fingerprint, self.ids, self.texts = index["fingerprint"], index["ids"], index["texts"]
            self.speakers, self.dtype = index["speakers"], np.dtype(index["dtype"])
            self.lengths = np.array(index["lengths"], dtype=np.int64)  # (n,)
            self.problems = [Problem(*pair) for pair in index["problems"]]
            self._sum, self._squares = np.array(index["sum"]), np.array(index["squares"])
            size = (self.folder / "rows.bin").stat().st_size
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"there is no complete feature store in {self.folder} ({type(error).__name__}): "
                f"build it again, or delete the folder if that repeats."
            ) from None
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])  # (n + 1,) int64
        if size != int(self.offsets[-1]) * NUM_FEATURES * self.dtype.itemsize:
            raise UserError(
                f"rows.bin in {self.folder} does not have the size its index says: delete that folder."
            )
        shape = (int(self.offsets[-1]), NUM_FEATURES)
        self._rows = np.memmap(self.folder / "rows.bin", dtype=self.dtype, mode="r", shape=shape)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        """Utterance i -> its own (T, 40) float32 array."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)  # also what ends `for rows in store`
        i = i % len(self)
        rows = np.array(self._rows[self.offsets[i] : self.offsets[i + 1]], dtype=np.float32)
        return rows if self.normaliser is None else self.normaliser(rows)  # (T, 40)

    @property
    def num_rows(self):
        return int(self.offsets[-1])

    @classmethod
    def build(
        cls, folder, utterances, normaliser=None, workers=None, dtype=np.float32, label=None, strict=False
    ):
        """Open the store in `folder` if it belongs to these utterances; compute it otherwise.

        workers: processes (default: one per core; small parts are done in this process).
        label: name on the progress bar, none without. strict: the first unreadable file raises.
        Safe to kill at any instant: the next call continues from the last entry of the journal.
        """
        folder, utterances = Path(folder), list(utterances)
        if not utterances:
            raise UserError(f"there are no utterances to build {folder} from: check the corpus.")
        fingerprint = _fingerprint(utterances, dtype)

        def finished():
            with contextlib.suppress(UserError):
                store = cls(folder, normaliser)
                if store.fingerprint == fingerprint:
                    return store

        store = finished()  # before anything is written: a finished store may lie on a read-only disk
        if store is None:
            with _disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with _only_builder(folder):
                    (folder / "index.json").unlink(missing_ok=True)  # from here on: not complete
                    _build(folder, utterances, fingerprint, workers, np.dtype(dtype), label, strict)
                    store = cls(folder, normaliser)
        if strict and store.problems:
            raise UserError(f"{store.problems[0]} (leave out --strict to skip and list it).")
        return store


def estimate_normaliser(stores):
    """The normaliser of a training set, from the sums that its stores kept: no row is read again."""
    stores = list(stores)
    return Normaliser.from_sums(
        sum(store.num_rows for store in stores),
        sum(store._sum for store in stores),
        sum(store._squares for store in stores),
    )


@contextlib.contextmanager
def _only_builder(folder):
    """Two processes that write one store would ruin it. The lock dies with its holder, however that dies."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock, and no harm as long as one run at a time uses the folder
        yield
        return
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is building the feature store in {folder}: wait until it is done."
            ) from None
        except OSError:
            pass  # a network file system without locks
        yield


def _read_journal(folder, fingerprint, row_bytes):
    """What an interrupted build finished: (last entry or None, lengths, problems, good bytes)."""
    last, lengths, problems, position = None, [], [], 0
    try:
        written = (folder / "rows.part").stat().st_size
        with open(folder / "journal.jsonl", "rb") as file:
            header = next(file)
            if json.loads(header) == {"fingerprint": fingerprint}:
                position = len(header)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # torn: the kill came in the middle of it
                    entry = json.loads(line)
                    if entry["rows"] * row_bytes > written:
                        break
                    lengths, problems = lengths + entry["lengths"], problems + entry["problems"]
                    last, position = entry, position + len(line)
    except (OSError, StopIteration, ValueError, KeyError, TypeError):
        pass  # no journal, or damaged from here on: what was read so far counts
    return last, lengths, problems, position


def _build(folder, utterances, fingerprint, workers, dtype, label, strict):
    row_bytes = NUM_FEATURES * dtype.itemsize
    journal = folder / "journal.jsonl"
    last, lengths, problems, position = _read_journal(folder, fingerprint, row_bytes)
    if last is not None:
        done, rows_written = last["done"], last["rows"]
        total, squares = np.array(last["sum"]), np.array(last["squares"])
        os.truncate(journal, position)
    else:
        done, rows_written, total, squares = 0, 0, np.zeros(NUM_FEATURES), np.zeros(NUM_FEATURES)
        lengths, problems = [], []
        journal.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")

    bar = _bar(label, total=len(utterances), initial=done, unit="utt")
    with bar, open(folder / "rows.part", "ab") as rows_file, open(journal, "a", encoding="utf-8") as log:
        rows_file.truncate(rows_written * row_bytes)
        fresh_lengths, fresh_problems, since_commit = [], [], 0

        def commit():
            # Rows reach the disk before the journal says so; the other order could promise what is not there.
            nonlocal fresh_lengths, fresh_problems, since_commit
            rows_file.flush()
            os.fsync(rows_file.fileno())
            entry = {"done": done, "rows": rows_written, "sum": total.tolist(), "squares": squares.tolist()}
            entry |= {"lengths": fresh_lengths, "problems": fresh_problems}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            lengths.extend(fresh_lengths)
            problems.extend(fresh_problems)
            fresh_lengths, fresh_problems, since_commit = [], [], 0

        paths = [str(u.audio) for u in utterances[done:]]
        # The loop's source is closed at once when something raises, which ends the worker processes.
        with contextlib.closing(_extract_all(paths, workers)) as results:
            for rows, reason in results:
                utterance = utterances[done]
                if rows is None and strict:
                    raise UserError(f"utterance {utterance.id}: {reason} (leave out --strict to skip it).")
                done += 1
                if rows is None:
                    fresh_lengths.append(0)
                    fresh_problems.append([utterance.id, reason])
                else:
                    stored = rows.astype(dtype)
                    rows_file.write(stored.tobytes())
                    fresh_lengths.append(len(stored))
                    rows_written += len(stored)
                    total += stored.sum(axis=0, dtype=np.float64)
                    squares += np.square(stored, dtype=np.float64).sum(axis=0)
                    since_commit += stored.nbytes
                bar.update()
                if since_commit >= COMMIT_BYTES:
                    commit()
        if fresh_lengths:
            commit()
    if rows_written == 0:
        raise UserError(
            f"none of the {len(utterances)} utterances could be read; the first problem is "
            f"{problems[0][0]}: {problems[0][1]}"
        )

    kept = [i for i, length in enumerate(lengths) if length]
    index = {
        "fingerprint": fingerprint,
        "dtype": dtype.name,
        "ids": [utterances[i].id for i in kept],
        "speakers": [utterances[i].speaker for i in kept],
        "texts": [utterances[i].text for i in kept],
        "lengths": [lengths[i] for i in kept],
        "problems": problems,
        "sum": total.tolist(),
        "squares": squares.tolist(),
    }
    os.replace(folder / "rows.part", folder / "rows.bin")
    temporary = folder / "index.json.part"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(index, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "index.json")
    journal.unlink()


def _extract_all(paths, workers):
    """Yield the results of all paths in order, with as many processes as that is worth."""
    workers = os.cpu_count() or 1 if workers is None else workers
    finished = 0
    if workers > 1 and len(paths) > SMALL_PART:
        try:
            for result in _extract_in_processes(paths, workers):
                yield result
                finished += 1
        except BrokenProcessPool:
            # A worker was killed (memory?), or could not start: `spawn` imports the main script again,
            # which fails for one that lacks its `if __name__ == "__main__"`. Finish it here.
            pass
    for path in paths[finished:]:
        yield from _extract([path])


def _start_worker():
    """Ctrl-C is the parent's business; and whoever kills the parent, however hard, kills the workers too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow():
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _extract_in_processes(paths, workers):
    # spawn, never fork: a fork after any parallel numba kernel hangs (OpenMP). The workers' own BLAS
    # threads would only fight over the cores, so the environment they inherit switches those off.
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker)
    try:
        chunks = (paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK))
        # A bounded queue: results wait in memory only until their predecessors are written.
        waiting = deque(pool.submit(_extract, chunk) for chunk in itertools.islice(chunks, 2 * workers + 2))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(_extract, chunk) for chunk in itertools.islice(chunks, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


# ---------------------------------------------------------------- batches


@dataclass
class Batch:
    """B utterances laid end to end: nothing is padded."""

    ids: list
    features: np.ndarray  # (sum T, 40) float32
    lengths: np.ndarray  # (B,) int64
    labels: np.ndarray  # (sum U,) int64
    label_lengths: np.ndarray  # (B,) int64


def check_lattice(rows, label_lengths, max_symbols_per_row=5, frames=None, max_frames=None, ids=None):
    """Which utterances can be trained on? -> (kept indices, problems).

    rows: encoder output rows per utterance (frames // 8 for the paper's encoder); label_lengths: units.
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
    """Utterances of a store -> one ragged Batch. `targets[i]` holds the label ids of utterance i."""
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


# ---------------------------------------------------------------- download


MIRROR = "https://www.openslr.org/resources"

# part: (folder at the mirror, bytes, md5)
ARCHIVES = {
    "dev-clean": ("12", 337926286, "42e2234ba48799c1f50f24a7926300a1"),
    "dev-other": ("12", 314305928, "c8d0bcc9cca99d4f8b62fcc847357931"),
    "test-clean": ("12", 346663984, "32fa31d27d2e1cad72775fee3f4849a9"),
    "test-other": ("12", 328757843, "fb5a50374b501bb3bac4815ee91d3135"),
    "train-clean-100": ("12", 6387309499, "2a93770f6d5c6c964bc36631d331a522"),
    "train-clean-360": ("12", 23049477885, "c0e676e450a7ff2f54aeade5171606fa"),
    "train-other-500": ("12", 30593501606, "d1a0fd59409feb2c614ce4d30c387708"),
    "train-clean-5": ("31", 332954390, "5df7d4e78065366204ca6845bb08f490"),
    "dev-clean-2": ("31", 126046265, "6d7ab67ac6a1d2c993d050e16d61080d"),
}
MARKER = ".complete"


def download(part, to, mirror=MIRROR, archives=ARCHIVES, retries=8, pause=2.0, keep_archive=False, show=True):
    """Fetch one part of LibriSpeech into <to>/LibriSpeech/<part>; returns that folder.

    Interrupted at any point, the same call continues: the archive grows under a .part name and is asked
    for from where it ended; size and md5 are checked before anything is unpacked; unpacking happens
    beside, and the finished folder, with a marker inside, moves into place in one step.
    """
    if part not in archives:
        raise UserError(f"there is no part {part!r}: choose from {', '.join(archives)}.")
    number, size, md5 = archives[part]
    to = Path(to)
    target = to / "LibriSpeech" / part
    if (target / MARKER).exists():
        return target
    if target.exists():
        raise UserError(
            f"{target} exists without a completion marker, so it may be half unpacked: delete it, or, if "
            f"you know that it is complete, create an empty file {target / MARKER}."
        )
    with _disk_errors(to):
        to.mkdir(parents=True, exist_ok=True)
        archive = to / f"{part}.tar.gz"
        if not archive.exists():
            partial = to / f"{part}.tar.gz.part"
            _check_room(to, needed=2 * size - (partial.stat().st_size if partial.exists() else 0))
            _fetch(f"{mirror}/{number}/{part}.tar.gz", partial, size, retries, pause, part if show else None)
            os.replace(partial, archive)
        _verify(archive, size, md5, f"{part} md5" if show else None)
        _unpack(archive, part, to, f"{part} unpack" if show else None)
        if not keep_archive:
            archive.unlink()
    return target


def _check_room(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free but archive and unpacked part need "
            f"{needed / 1e9:.1f} GB: make room or choose another folder."
        )


def _fetch(url, partial, size, retries, pause, label):
    """Grow `partial` to `size` bytes; a dropped connection is taken up again where it broke off."""
    failures, reason, arrived = 0, "", False
    with _bar(label, total=size, unit="B", unit_scale=True, unit_divisor=1000) as bar:
        while True:
            have = partial.stat().st_size if partial.exists() else 0
            if have > size:  # left over from something else
                partial.unlink()
                have = 0
            bar.n = have
            if not arrived:
                bar.initial = have  # the ETA counts from here
            bar.refresh()
            if have == size:
                return
            # With no network at all, two more tries are enough to say so.
            if failures > (retries if arrived else min(retries, 2)):
                raise UserError(
                    f"{url} could not be downloaded ({reason}; {have} of {size} bytes are here): check the "
                    f"network, then run the same command again, it continues from there."
                )
            if failures:
                time.sleep(pause * min(failures, 15))
            try:
                _fetch_some(url, partial, have, size, bar)
                reason = "the connection broke off"
            except urllib.error.HTTPError as error:
                if error.code not in (408, 416, 425, 429) and error.code < 500:
                    raise UserError(
                        f"{url} could not be downloaded (HTTP {error.code} {error.reason}): "
                        f"name another mirror with --mirror."
                    ) from None
                reason = f"HTTP {error.code} {error.reason}"
            except urllib.error.URLError as error:
                reason = str(error.reason)
            except (HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
                reason = str(error) or type(error).__name__
            grown = partial.exists() and partial.stat().st_size > have
            arrived = arrived or grown
            failures = 1 if grown else failures + 1


def _fetch_some(url, partial, have, size, bar):
    request = urllib.request.Request(url, headers={"User-Agent": "mini_pkd"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=60) as response:
        promised = response.headers.get("Content-Length")
        if response.status == 206:
            start = response.headers.get("Content-Range", "").removeprefix("bytes").strip().split("-")[0]
            if start != str(have):
                raise HTTPException(f"asked for bytes from {have}, was sent {start or 'something else'}")
        else:
            have = 0  # this server ignores ranges: from the start, then
        if promised is not None and have + int(promised) != size:
            raise UserError(
                f"{url} offers {have + int(promised)} bytes where LibriSpeech's archive has {size}: "
                f"it is another file, name another mirror with --mirror."
            )
        bar.n = have
        with open(partial, "ab" if have else "wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))


def _verify(archive, size, md5, label):
    """Size and md5 of a finished download; a wrong one is deleted, so that the next run starts afresh."""
    found = archive.stat().st_size
    if found == size:
        digest = hashlib.md5(usedforsecurity=False)
        with open(archive, "rb") as file, _bar(label, total=size, unit="B", unit_scale=True) as bar:
            while block := file.read(1 << 22):
                digest.update(block)
                bar.update(len(block))
        if digest.hexdigest() == md5:
            return
        what = f"has md5 {digest.hexdigest()} where {md5} is expected"
    else:
        what = f"has {found} bytes where {size} are expected"
    archive.unlink()
    raise UserError(f"{archive} {what}, so it was damaged and is now deleted: run the same command again.")


def _check_member(member, archive):
    """Only plain files and folders, only below the folder of extraction."""
    names = member.name.replace("\\", "/").split("/")
    drive = len(member.name) > 1 and member.name[1] == ":"
    if not (member.isfile() or member.isdir()) or names[0] == "" or ".." in names or drive:
        raise UserError(
            f"{archive} holds the entry {member.name!r}, which is not a plain file inside it: "
            f"it is not LibriSpeech's archive, so nothing of it was put in place; delete it."
        )


def _unpack(archive, part, to, label):
    beside = to / f".unpacking-{part}"
    shutil.rmtree(beside, ignore_errors=True)  # what an earlier, interrupted run left
    beside.mkdir()
    # Pythons that have the filter (3.10.12, 3.11.4, 3.12 and on) apply their own checks after ours.
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with tarfile.open(archive, "r:gz") as tar, _bar(label, unit="file") as bar:
            for member in tar:
                _check_member(member, archive)
                tar.extract(member, beside, **safely)
                bar.update()
        unpacked = beside / "LibriSpeech" / part
        if not unpacked.is_dir():
            raise UserError(f"{archive} holds no folder LibriSpeech/{part}: delete it.")
        (to / "LibriSpeech").mkdir(exist_ok=True)
        for name, path in _scan(beside / "LibriSpeech")[1]:  # README.TXT, SPEAKERS.TXT, ...
            os.replace(path, to / "LibriSpeech" / name)
        (unpacked / MARKER).write_text("unpacked by mini_pkd.corpus\n")
        os.replace(unpacked, to / "LibriSpeech" / part)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise UserError(
            f"{archive} cannot be unpacked ({error}): delete it and run the same command again."
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# ---------------------------------------------------------------- commands


def check(root, strict=False, show=10):
    """Print utterances, hours and problems of every part below `root`; returns the number of problems."""
    parts = find_parts(root, required=())
    folders = [folder for role in parts.values() for folder in role]
    if not folders:  # perhaps the folder of one part
        folders = [Path(root)]
    print(f"{'part':18s} {'utterances':>10s} {'speakers':>8s} {'words':>9s} {'hours':>8s} {'problems':>8s}")
    bad = 0
    for folder in folders:
        utterances, problems = read_part(folder, strict)
        seconds = 0.0
        for utterance in _bar(folder.name, iterable=utterances, unit="utt", leave=False):
            try:
                info = soundfile.info(str(utterance.audio))
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
            f"{folder.name:18s} {len(utterances):10d} {speakers:8d} {words:9d} {seconds / 3600:8.2f} "
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
    import tempfile

    folder = find_parts(root)["train"][0]
    utterances, problems = read_part(folder)
    first = utterances[0]
    seconds = soundfile.info(str(first.audio)).duration
    print(f"{folder}: {len(utterances)} utterances, {len(problems)} problems")
    with tempfile.TemporaryDirectory() as temporary:
        store = FeatureStore.build(temporary, utterances[:40])
        store.normaliser = estimate_normaliser([store])
        print(f"{first.id} ({seconds:.2f} s, {store.lengths[0]} frames of 10 ms): {first.text}")
        batches = make_batches(store.lengths, max_frames=4000, max_utterances=8)
        print("the first 40 utterances as batches of at most 8 utterances and 4000 frames:")
        for batch in batches:
            lengths = store.lengths[batch].tolist()
            print(f"  {len(batch)} utterances, {sum(lengths):4d} frames: {lengths}")
        batch = collate(store, batches[0], [[1] * len(text) for text in store.texts])
        print(f"collated: features {batch.features.shape}, labels {batch.labels.shape}, nothing padded")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m mini_pkd.corpus", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    get = commands.add_parser("download", help="fetch parts of LibriSpeech, resumably")
    get.add_argument("--parts", nargs="+", required=True, metavar="PART", help=", ".join(ARCHIVES))
    get.add_argument("--to", required=True, metavar="DIR", help="parts end up in DIR/LibriSpeech/PART")
    get.add_argument("--mirror", default=MIRROR, help="where the archives are (default %(default)s)")
    get.add_argument("--keep-archives", action="store_true", help="do not delete what was unpacked")
    look = commands.add_parser("check", help="count utterances, hours and problems of a corpus")
    look.add_argument("folder", metavar="DIR", help="a corpus, or one part of it")
    look.add_argument("--strict", action="store_true", help="stop at the first problem, exit status 2")
    options = parser.parse_args(arguments)
    try:
        if options.command == "download":
            for part in options.parts:  # a misspelt last part must not wait for the first 23 GB
                if part not in ARCHIVES:
                    raise UserError(f"there is no part {part!r}: choose from {', '.join(ARCHIVES)}.")
            for part in options.parts:
                folder = download(part, options.to, options.mirror, keep_archive=options.keep_archives)
                print(f"{part} is complete in {folder}")
        elif options.command == "check":
            problems = check(options.folder, options.strict)
            return 2 if options.strict and problems else 0
        else:
            parser.print_help()
            root = Path(__file__).resolve().parent.parent / "data_small" / "numbers"
            if root.is_dir():
                print()
                demo(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues where it was.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
