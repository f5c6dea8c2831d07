"""The feature store: the MFCC rows of many utterances in one memory-mapped file.

`FeatureStore.build` computes the rows once and lays them end to end in one file: 960 hours are 345 million
rows, 55 GB, and training touches only the rows of the batch at hand.  It may be killed at any instant and
continues from a journal; a change of files, transcripts or of the features' recipe is noticed by a fingerprint.
"""

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from . import UserError, ctrl_c_is_for_us
from .corpus import Problem, disk_errors, find_parts, progress_bar, read_part
from .features import NUM_FEATURES, RECIPE, Normaliser, mfcc, read_audio

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

        workers: processes (default: one per usable core; small parts are done in this process).
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
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with only_process(folder, "is building the feature store"):
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
def only_process(folder, doing):
    """Two processes that write one folder would ruin it. The lock dies with its holder, however that dies."""
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
                f"another process {doing} in {folder}: wait until it is done."
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

    bar = progress_bar(label, total=len(utterances), initial=done, unit="utt")
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
    from .threads import usable_cores  # not above: a worker process would import numba with it

    workers = usable_cores() if workers is None else workers
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

    def submit(chunk):
        with ctrl_c_is_for_us():  # this is where workers are started
            return pool.submit(_extract, chunk)

    try:
        chunks = (paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK))
        # A bounded queue: results wait in memory only until their predecessors are written.
        waiting = deque(map(submit, itertools.islice(chunks, 2 * workers + 2)))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(map(submit, itertools.islice(chunks, 1)))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


if __name__ == "__main__":
    import tempfile

    numbers = Path(__file__).resolve().parent.parent / "data_small" / "numbers"
    utterances, _ = read_part(find_parts(numbers)["train"][0])
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.build(folder, utterances[:40])
        size = os.path.getsize(os.path.join(folder, "rows.bin"))
        print(f"{len(store)} utterances, {store.num_rows} rows of 40 float32: {size} bytes, {store.num_rows} x 160")
        same = np.array_equal(store[7], mfcc(read_audio(utterances[7].audio)))
        print(f"utterance 7 of the store is what mfcc gives: {same}")
        store.normaliser = estimate_normaliser([store])
        rows = np.concatenate(list(store))
        print(f"normalised: mean {np.abs(rows.mean(axis=0)).max():.1e}, deviation {rows.std(axis=0).mean():.4f}")
