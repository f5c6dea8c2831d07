"""The feature store: the MFCC rows of many utterances in one memory-mapped file.

`FeatureStore.build` computes the rows once and lays them end to end in one file: 960 hours are 345 million
rows, 55 GB, and training touches only the rows of the batch at hand.  It may be killed at any instant and
continues from a journal; a change of files, transcripts or of the features' recipe is noticed by a fingerprint,
and a damaged disk by checksums: of every utterance's rows, and of every line that is written about them.  (A store
of an older version has no checksums, and is built again.)
"""

import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from . import UserError, ctrl_c_is_for_us
from .checkpoint import write_text_atomic
from .corpus import Problem, disk_errors, find_parts, progress_bar, read_part
from .features import NUM_FEATURES, RECIPE, Normaliser, mfcc, read_audio
from .lock import Lock, no_follow

CHUNK = 16  # utterances per task of a worker process
COMMIT_BYTES = 1 << 25  # of rows between two entries of the journal: a kill costs at most so much work,
COMMIT_SECONDS = 1.0  # and a process that waits for ours sees it move
JOURNAL = "journal.jsonl"
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


# --- what stands in the store's own files -----------------------------------------------------------------------------


def _seal(content):
    """-> a line of JSON that carries a checksum of itself."""
    return json.dumps({**content, "crc32": zlib.crc32(json.dumps(content).encode())}) + "\n"


def _unseal(line):
    """The inverse of `_seal` (Python's JSON gives back what it wrote); ValueError for all that it did not write."""
    try:
        content = json.loads(line)
        checksum = content.pop("crc32")
        intact = line.endswith(b"\n") and zlib.crc32(json.dumps(content).encode()) == checksum
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise ValueError("damaged or cut short")
    return content


def _check_entry(entry):
    """What an entry of the journal and the index have in common; ValueError unless everything is as it should be."""
    counts = [entry.get(key) for key in ("lengths", "checksums")]
    sums = [entry.get(key) for key in ("sum", "squares")]
    problems = entry.get("problems")
    if not (
        all(type(x) is list and all(type(n) is int and 0 <= n < 2**63 for n in x) for x in counts)
        and len(counts[0]) == len(counts[1])
        and all(type(x) is list and len(x) == NUM_FEATURES for x in sums)
        and all(type(x) is float and math.isfinite(x) for x in sums[0] + sums[1])
        and type(problems) is list
        and all(_strings(problem) and len(problem) == 2 for problem in problems)
    ):
        raise ValueError("not what a feature store writes")
    return entry


def _strings(values):
    return type(values) is list and all(type(x) is str for x in values)


def _read_index(path):
    """index.json; ValueError unless it is whole and of the shape that `_build` gives it."""
    with open(path, "rb", opener=no_follow) as file:
        index = _check_entry(_unseal(file.read()))
    columns = [index.get(key) for key in ("ids", "speakers", "texts")]
    if not (
        all(_strings(x) and len(x) == len(index["lengths"]) for x in columns)
        and type(index.get("fingerprint")) is str
        and index.get("dtype") in ("float16", "float32")
        and 0 not in index["lengths"]
    ):
        raise ValueError("not the index of a feature store")
    return index


def _read_journal(folder, fingerprint, row_bytes, most):
    """What an interrupted build finished -> (all entries joined into one, the journal's good bytes)."""
    joined = {"lengths": [], "checksums": [], "problems": []}
    joined |= {"sum": [0.0] * NUM_FEATURES, "squares": [0.0] * NUM_FEATURES}
    position = rows = 0
    # No journal, another corpus's, or damaged from some line on: what was read until then counts.
    with contextlib.suppress(OSError, ValueError), open(folder / JOURNAL, "rb", opener=no_follow) as file:
        written = (folder / "rows.bin").stat().st_size
        for line in file:
            content = _unseal(line)
            if position == 0:
                if content != {"fingerprint": fingerprint}:
                    break
            else:
                entry = _check_entry(content)
                rows += sum(entry["lengths"])
                if rows * row_bytes > written or len(joined["lengths"]) + len(entry["lengths"]) > most:
                    break
                for key in ("lengths", "checksums", "problems"):
                    joined[key] += entry[key]
                joined |= {key: entry[key] for key in ("sum", "squares")}  # these two are running sums
            position += len(line)
    return joined, position


# --- the store --------------------------------------------------------------------------------------------------------


class FeatureStore:
    """The MFCC rows of many utterances in one memory-mapped file.

    rows.bin     all rows end to end, dtype float32 (or float16 to halve the disk), 40 columns
    index.json   fingerprint, ids, speakers, texts, lengths, checksums, problems, and the rows' sums for the
                 normaliser; written last, under a temporary name first: if it exists, the store is complete

    The file holds raw MFCCs. `store[i]` gives (T, 40) float32 rows, normalised when `store.normaliser`
    is set, which costs little and lets one store serve whatever training set the normaliser came from.

    The rows' checksum is looked at when a process touches an utterance for the first time: at 3 GB/s nobody
    notices, whereas looking at opening would read 55 GB first, in each of the processes of a run.
    """

    def __init__(self, folder, normaliser=None):
        self.folder, self.normaliser = Path(folder), normaliser
        path = self.folder / "rows.bin"
        try:
            index = _read_index(self.folder / "index.json")
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"there is no complete feature store in {self.folder} ({reason}): "
                f"build it again, or delete the folder if that repeats."
            ) from None
        self.fingerprint, self.ids, self.texts = index["fingerprint"], index["ids"], index["texts"]
        self.speakers, self.dtype = index["speakers"], np.dtype(index["dtype"])
        self.problems = [Problem(*pair) for pair in index["problems"]]
        self._sum, self._squares = np.array(index["sum"]), np.array(index["squares"])
        num_rows = sum(index["lengths"])  # Python's integers, which do not overflow
        if size == 0 or size != num_rows * NUM_FEATURES * self.dtype.itemsize:
            raise UserError(f"{path} does not have the size its index says: delete that folder.")
        self.lengths = np.array(index["lengths"], dtype=np.int64)  # (n,)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])  # (n + 1,) int64
        self._checksums, self._checked = index["checksums"], np.zeros(len(self.ids), dtype=bool)
        self._rows = np.memmap(path, dtype=self.dtype, mode="r", shape=(num_rows, NUM_FEATURES))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        """Utterance i -> its own (T, 40) float32 array."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)  # also what ends `for rows in store`
        i = i % len(self)
        stored = np.array(self._rows[self.offsets[i] : self.offsets[i + 1]])  # a copy
        if not self._checked[i]:
            if zlib.crc32(stored) != self._checksums[i]:
                raise UserError(
                    f"{self.folder / 'rows.bin'} is damaged where utterance {self.ids[i]} lies: delete the folder "
                    f"{self.folder}, and the same command computes its features again."
                )
            self._checked[i] = True
        rows = stored.astype(np.float32, copy=False)
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
        While another process builds in that folder we wait for it, and then open what it has made.
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
                with Lock(folder) as lock:
                    _wait(lock, folder, len(utterances), label)
                    store = finished()  # by the process that we waited for
                    if store is None:
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


def _wait(lock, folder, total, label):
    """Until the lock is ours; a bar follows the journal of the process that holds it."""
    if lock.take():
        return

    def news(position):
        """-> (utterances that the journal tells of from there on, its position after them)"""
        done = 0
        with contextlib.suppress(OSError, ValueError, TypeError), open(folder / JOURNAL, "rb") as file:
            file.seek(position)
            for line in file:
                done += len(_unseal(line).get("lengths", ()))
                position += len(line)
        return done, position

    done, position = news(0)
    label = label and f"{label}, by another process"
    with progress_bar(label, total=total, initial=done, unit="utt") as bar:
        while not lock.take():
            time.sleep(0.5)
            done, position = news(position)
            bar.update(done)


def _build(folder, utterances, fingerprint, workers, dtype, label, strict):
    row_bytes = NUM_FEATURES * dtype.itemsize
    whole, position = _read_journal(folder, fingerprint, row_bytes, len(utterances))
    done, rows_written = len(whole["lengths"]), sum(whole["lengths"])
    total, squares = np.array(whole["sum"]), np.array(whole["squares"])
    if position == 0:
        # Anew, in a file of that name which is another file: processes may still read the old one.
        (folder / "rows.bin").unlink(missing_ok=True)

    bar = progress_bar(label, total=len(utterances), initial=done, unit="utt")
    with (
        bar,
        open(folder / "rows.bin", "ab", opener=no_follow) as rows_file,
        open(folder / JOURNAL, "ab", opener=no_follow) as log,
    ):
        rows_file.truncate(rows_written * row_bytes)
        log.truncate(position)
        if position == 0:
            log.write(_seal({"fingerprint": fingerprint}).encode())
            log.flush()
        fresh, since_commit, committed = {"lengths": [], "checksums": [], "problems": []}, 0, time.monotonic()

        def commit():
            # Rows reach the disk before the journal says so; the other order could promise what is not there.
            nonlocal fresh, since_commit, committed
            rows_file.flush()
            os.fsync(rows_file.fileno())
            log.write(_seal({**fresh, "sum": total.tolist(), "squares": squares.tolist()}).encode())
            log.flush()
            for key, values in fresh.items():
                whole[key] += values
            fresh, since_commit, committed = {key: [] for key in fresh}, 0, time.monotonic()

        paths = [str(u.audio) for u in utterances[done:]]
        # The loop's source is closed at once when something raises, which ends the worker processes.
        with contextlib.closing(_extract_all(paths, workers)) as results:
            for rows, reason in results:
                utterance = utterances[done]
                if rows is None and strict:
                    raise UserError(f"utterance {utterance.id}: {reason} (leave out --strict to skip it).")
                done += 1
                stored = np.zeros((0, NUM_FEATURES), dtype) if rows is None else rows.astype(dtype)
                if rows is None:
                    fresh["problems"].append([utterance.id, reason])
                rows_file.write(stored.tobytes())
                fresh["lengths"].append(len(stored))
                fresh["checksums"].append(zlib.crc32(stored))
                rows_written += len(stored)
                total += stored.sum(axis=0, dtype=np.float64)
                squares += np.square(stored, dtype=np.float64).sum(axis=0)
                since_commit += stored.nbytes
                bar.update()
                if since_commit >= COMMIT_BYTES or time.monotonic() - committed >= COMMIT_SECONDS:
                    commit()
        if fresh["lengths"]:
            commit()
    if rows_written == 0:
        raise UserError(
            f"none of the {len(utterances)} utterances could be read; the first problem is "
            f"{Problem(*whole['problems'][0])}"
        )

    kept = [i for i, length in enumerate(whole["lengths"]) if length]
    index = {
        "fingerprint": fingerprint,
        "dtype": dtype.name,
        "ids": [utterances[i].id for i in kept],
        "speakers": [utterances[i].speaker for i in kept],
        "texts": [utterances[i].text for i in kept],
        "lengths": [whole["lengths"][i] for i in kept],
        "checksums": [whole["checksums"][i] for i in kept],
        "problems": whole["problems"],
        "sum": total.tolist(),
        "squares": squares.tolist(),
    }
    write_text_atomic(folder / "index.json", _seal(index))
    (folder / JOURNAL).unlink()  # not before the index stands: killed in between, nothing is lost


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
