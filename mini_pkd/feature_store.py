"""The feature store: the MFCC rows of many utterances in one memory-mapped file.

`FeatureStore.build` computes the rows once and lays them end to end in one file: 960 hours are 345 million
rows, 55 GB, and training touches only the rows of the batch at hand.  A build may be killed at any instant and
continues from its journal.  A fingerprint tells when audio, transcripts or the features' recipe have changed, and
checksums of every utterance's rows and of index and journal tell when the disk has.  (A store of an older version has
no checksums, and is built again.)

feature_store_files.py reads index and journal, feature_workers.py computes the rows.
"""

import contextlib
import hashlib
import os
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from . import UserError
from .audio_file import read_audio
from .checkpoint import write_text_atomic
from .command import disk_errors, progress_bar
from .corpus_folder import EXAMPLE, Problem, find_parts, read_part
from .feature_store_files import JOURNAL, read_index, read_journal, seal, unseal
from .feature_workers import extract_all
from .features import NUM_FEATURES, RECIPE, Normaliser, mfcc
from .lock import Lock, no_follow
from .threads import usable_cores
from .training_state import tell

COMMIT_BYTES = 1 << 25  # of rows between two entries of the journal: a kill costs at most so much work,
COMMIT_SECONDS = 1.0  # and a process that waits for ours sees it move

# --- the store ------------------------------------------------------------------------------------


class FeatureStore:
    """The MFCC rows of many utterances in one memory-mapped file.

    rows.bin     all rows end to end, dtype float32 (or float16 to halve the disk), 40 columns
    index.json   fingerprint, ids, speakers, texts, lengths, checksums, problems, and the rows' sums for the
                 normaliser; written last, under a temporary name first: if it exists, the store is complete

    The file holds raw MFCCs. `store[i]` gives (T, 40) float32 rows, normalised when `store.normaliser`
    is set, which costs little and lets one store serve normalisers of different training sets.

    A checksum is compared when a process first reads that utterance; comparing all of them on opening would read 55 GB
    first, in each of the processes of a run.
    """

    def __init__(self, folder, normaliser=None):
        self.folder, self.normaliser = Path(folder), normaliser
        path = self.folder / "rows.bin"
        try:
            index = read_index(self.folder / "index.json")
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
    def build(cls, folder, utterances, normaliser=None, workers=None, dtype=np.float32, label=None, strict=False):
        """Open the store in `folder` if it belongs to these utterances; compute it otherwise.

        workers: processes (default: one per usable core; small parts are done in this process).
        label: name on the progress bar; without one there is no bar. strict: the first unreadable file raises.
        While another process builds in that folder we wait for it, and then open its store.
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
                        if label and (reason := _what_differs(folder, utterances, dtype)):
                            tell(f"{label} are computed again, because {reason} ({folder})")
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


# --- building it ----------------------------------------------------------------------------------


def _fingerprint(utterances, dtype):
    """A text that changes when the utterances, their transcripts, their files or the feature recipe change.

    Of a file only size and time of change count, because reading 60 GB just for a hash would take too long.
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


def _what_differs(folder, utterances, dtype):
    """Why the store in that folder cannot be used for these utterances; None if there is none."""
    try:
        index = read_index(folder / "index.json")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"their index cannot be read: {getattr(error, 'strerror', None) or error}"
    if index["dtype"] != np.dtype(dtype).name:
        return f"they are {index['dtype']} and {np.dtype(dtype).name} is asked for"
    before, now = dict(zip(index["ids"], index["texts"], strict=True)), {u.id: u.text for u in utterances}
    counts = {
        "new": len(now.keys() - before.keys() - {where for where, _ in index["problems"]}),
        "gone": len(before.keys() - now.keys()),
        "changed in their text": sum(now.get(i, text) != text for i, text in before.items()),
    }
    different = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if different:
        return f"utterances are others than before: {different}"
    return "audio files have another size or date than before, or features are computed in another way now"


def _wait(lock, folder, total, label):
    """Wait until the lock is ours; a bar follows the journal of the process that holds it."""
    if lock.take():
        return

    def news(position):
        """Read the journal from there on -> (utterances that it tells of, its position after them)"""
        done = 0
        with contextlib.suppress(OSError, ValueError, TypeError), open(folder / JOURNAL, "rb") as file:
            file.seek(position)
            for line in file:
                done += len(unseal(line).get("lengths", ()))
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
    whole, position = read_journal(folder, fingerprint, row_bytes, len(utterances))
    done = len(whole["lengths"])
    workers = usable_cores() if workers is None else workers
    if position == 0:
        # Start a new file rather than emptying the old one, which other processes may still read.
        (folder / "rows.bin").unlink(missing_ok=True)

    with (
        progress_bar(label, total=len(utterances), initial=done, unit="utt") as bar,
        open(folder / "rows.bin", "ab", opener=no_follow) as rows_file,
        open(folder / JOURNAL, "ab", opener=no_follow) as journal,
    ):
        rows_file.truncate(sum(whole["lengths"]) * row_bytes)
        journal.truncate(position)
        if position == 0:
            journal.write(seal({"fingerprint": fingerprint}).encode())
            journal.flush()
        writer = _Writer(rows_file, journal, whole, dtype)
        # closing: if something raises here, the worker processes end at once.
        with contextlib.closing(extract_all([str(u.audio) for u in utterances[done:]], workers)) as results:
            for utterance, (rows, reason) in zip(utterances[done:], results, strict=True):
                if rows is None and strict:
                    raise UserError(f"utterance {utterance.id}: {reason} (leave out --strict to skip it).")
                writer.add(utterance.id, rows, reason)
                bar.update()
        writer.commit()
    kept = [i for i, length in enumerate(whole["lengths"]) if length]
    if not kept:
        raise UserError(
            f"none of the {len(utterances)} utterances could be read; the first problem is "
            f"{Problem(*whole['problems'][0])}"
        )
    index = {
        "fingerprint": fingerprint,
        "dtype": dtype.name,
        "ids": [utterances[i].id for i in kept],
        "speakers": [utterances[i].speaker for i in kept],
        "texts": [utterances[i].text for i in kept],
        "lengths": [whole["lengths"][i] for i in kept],
        "checksums": [whole["checksums"][i] for i in kept],
        "problems": whole["problems"],
        "sum": whole["sum"],
        "squares": whole["squares"],
    }
    write_text_atomic(folder / "index.json", seal(index))
    (folder / JOURNAL).unlink()  # after the index is complete: a kill in between loses nothing


class _Writer:
    """Writes rows.bin and the journal; `whole` joins all entries of the journal into one."""

    def __init__(self, rows_file, journal, whole, dtype):
        self.rows_file, self.journal, self.whole, self.dtype = rows_file, journal, whole, dtype
        self.sum, self.squares = np.array(whole["sum"]), np.array(whole["squares"])
        self._start_entry()

    def _start_entry(self):
        self.entry, self.bytes, self.started = {"lengths": [], "checksums": [], "problems": []}, 0, time.monotonic()

    def add(self, utterance, rows, reason):
        """The rows (T, 40) of the next utterance, or None and the reason why there are none."""
        stored = np.zeros((0, NUM_FEATURES), self.dtype) if rows is None else rows.astype(self.dtype)
        if rows is None:
            self.entry["problems"].append([utterance, reason])
        self.rows_file.write(stored.tobytes())
        self.entry["lengths"].append(len(stored))
        self.entry["checksums"].append(zlib.crc32(stored))
        self.sum += stored.sum(axis=0, dtype=np.float64)
        self.squares += np.square(stored, dtype=np.float64).sum(axis=0)
        self.bytes += stored.nbytes
        if self.bytes >= COMMIT_BYTES or time.monotonic() - self.started >= COMMIT_SECONDS:
            self.commit()

    def commit(self):
        """Rows reach the disk before the journal says so; the other order could promise what is not there."""
        if not self.entry["lengths"]:
            return
        self.rows_file.flush()
        os.fsync(self.rows_file.fileno())
        sums = {"sum": self.sum.tolist(), "squares": self.squares.tolist()}
        self.journal.write(seal({**self.entry, **sums}).encode())
        self.journal.flush()
        for key, values in self.entry.items():
            self.whole[key] += values
        self.whole.update(sums)
        self._start_entry()


def demo():
    utterances, _ = read_part(find_parts(EXAMPLE)["train"][0])
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore.build(folder, utterances[:40])
        size = os.path.getsize(os.path.join(folder, "rows.bin"))
        print(f"{len(store)} utterances, {store.num_rows} rows of 40 float32: {size} bytes, {store.num_rows} x 160")
        same = np.array_equal(store[7], mfcc(read_audio(utterances[7].audio)))
        print(f"utterance 7 of the store is what mfcc gives: {same}")
        store.normaliser = estimate_normaliser([store])
        rows = np.concatenate(list(store))
        print(f"normalised: mean {np.abs(rows.mean(axis=0)).max():.1e}, deviation {rows.std(axis=0).mean():.4f}")


if __name__ == "__main__":
    demo()
