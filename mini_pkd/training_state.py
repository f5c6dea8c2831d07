"""What one training must remember, to be stopped at any instant and end in the same bits: training.npz and log.csv.

Random numbers are functions of (seed, model, epoch, step, utterance), so no generator needs to be saved: the weights,
Adam's two moments, the best weights so far and a few counters are the whole state.

A step whose loss or gradient is not finite changes no weights.  After MAX_BAD_STEPS of them in a row, or when even the
dev loss is not finite, the weights may be beyond repair although each of them is still a number.  Then the training
has diverged: it goes back to its best weights so far, which had a finite dev loss, and on with half the peak rate.
(Not to the weights that were saved last: when that was depends on the clock, and they may be spoiled already.)  After
MAX_ROLL_BACKS of these it gives up, and only a lower peak rate leads on.  The checkpoint, the log and the results say
which rate was used from which step on.

The last two states are kept, because disks fail too; if the newer one is damaged, the older one leads to the same bits.
A full disk is no reason to stop a training of weeks: it goes on, and is saved when there is room again.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import UserError, checkpoint
from .command import printable
from .stop_signal import Interrupted

MAX_BAD_STEPS = 5  # this many non-finite losses or gradients in a row: diverged
MAX_ROLL_BACKS = 4  # down to a sixteenth of the peak rate that was asked for
LOG_COLUMNS = (
    "epoch", "step", "updates", "loss", "rnnt", "kl", "gradient_norm", "skipped", "peak_rate", "dev_loss", "dev_wer",
    "seconds",
)  # fmt: skip


class Diverged(UserError):
    """A training has reached numbers that are not finite, even with the peak rate `rate`."""

    def __init__(self, sentence, rate):
        super().__init__(sentence)
        self.rate = rate


def state_files(folder):
    """Where the last two states of a training are, the newer one first."""
    return [Path(folder) / "training.npz", Path(folder) / "training.before.npz"]


def tell(sentence):
    """Something that the user should know, although training goes on."""
    tqdm.write(f"mini_pkd: {printable(sentence)}", file=sys.stderr)


class TrainingState:
    """Weights (in `adam`), the best ones so far, and counters; `restore` continues what another process has saved."""

    SAVED = (
        "step", "epoch", "done_in_epoch", "skipped", "bad_in_a_row", "best", "seconds", "sums", "smooth_loss", "rows",
        "peak_rates", "roll_backs", "looked_at",
    )  # fmt: skip

    def __init__(self, adam, folder, name, peak_rate):
        self.adam, self.name, self.peak_rate = adam, name, peak_rate
        self.path, self.path_before = state_files(folder)
        self.log_path = Path(folder) / "log.csv"
        self.step, self.epoch, self.done_in_epoch, self.skipped, self.bad_in_a_row = 0, 0, 0, 0, 0
        self.peak_rates = [[1, peak_rate]]  # [first step, rate]
        self.roll_backs = 0  # since the rate was given by the user
        self.looked_at = 0  # the step after which the dev set was scored last
        self.best = [math.inf, math.inf]  # dev WER, dev loss
        self.best_values = adam.values.copy()
        self.rows = []  # of the log
        self.sums = [0.0] * 5  # of this epoch: steps, loss, RNN-T, KL, gradient norm
        self.smooth_loss = 0.0
        self.seconds, self.saved_at = 0.0, time.monotonic()

    # --- what happens in a training ---------------------------------------------------------------

    def count_step(self, means):
        """A step is done.  means: of its loss, RNN-T, KL and gradient norm; None: not finite, no weight was changed."""
        self.step += 1
        self.done_in_epoch += 1
        if means is None:
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= MAX_BAD_STEPS:
                self.diverge()
            return
        self.bad_in_a_row = 0
        self.sums = [total + x for total, x in zip(self.sums, (1.0, *means), strict=True)]
        self.smooth_loss = means[0] if not self.smooth_loss else 0.95 * self.smooth_loss + 0.05 * means[0]

    @property
    def rate(self):
        """The peak rate as it is now."""
        return self.peak_rates[-1][1]

    def diverge(self):
        """Back to the best weights, with half the rate; Diverged if that was done too often, which the state tells."""
        what = (
            f"{self.name} has diverged: at step {self.step} the loss or its gradient was not finite, {MAX_BAD_STEPS} "
            f"times in a row or on the dev set"
        )
        if self.roll_backs >= MAX_ROLL_BACKS:
            self.bad_in_a_row = MAX_BAD_STEPS
            self.save()
            raise Diverged(f"{what}; lower peak_rate, and it goes on from its best weights so far", self.rate)
        self.roll_backs += 1
        self._restart_from_best(self.rate / 2)
        tell(f"{what}; it goes on from its best weights so far with half the rate, peak_rate={self.rate:g}")

    def _restart_from_best(self, rate):
        self.adam.restore({"values": self.best_values, "m": 0, "v": 0}, self.adam.steps)
        self.bad_in_a_row = 0
        self.peak_rates.append([self.step + 1, rate])

    def look(self, evaluate):
        """Score the dev set, and keep the weights if they are the best so far: evaluate() -> (loss, WER), returned."""
        dev_loss, dev_wer = evaluate()
        while not math.isfinite(dev_loss):
            self.diverge()
            dev_loss, dev_wer = evaluate()  # of the best weights so far, so it is finite
        self.looked_at = self.step
        if [dev_wer, dev_loss] < self.best:  # among equal WERs the lower loss
            self.keep_best(dev_loss, dev_wer)
        return dev_loss, dev_wer

    def keep_best(self, dev_loss, dev_wer):
        """The weights as they are now are the best ones so far."""
        self.best = [dev_wer, dev_loss]
        self.best_values = self.adam.values.copy()

    def look_is_due(self, updates):
        """Whether the dev set must be scored before the next step: so it is every `updates` steps; 0: never."""
        return updates > 0 and self.step % updates == 0 and self.looked_at < self.step

    def end_epoch(self, dev_loss=None, dev_wer=None):
        """The epoch's line of the log."""
        self.log(dev_loss, dev_wer, ends=True)

    def log(self, dev_loss=None, dev_wer=None, ends=False):
        """A line for the log, means over the epoch so far; save if the disk has room."""
        n = max(1.0, self.sums[0])
        means = [round(x / n, 4) for x in self.sums[1:]]
        dev = [None if x is None else round(x, 4) for x in (dev_loss, dev_wer)]
        seconds = round(self.seconds + time.monotonic() - self.saved_at, 1)
        row = [self.epoch + 1, self.step, self.adam.steps, *means, self.skipped, self.rate, *dev, seconds]
        self.rows.append(row)
        if ends:
            self.epoch, self.done_in_epoch, self.sums = self.epoch + 1, 0, [0.0] * 5
        lines = [",".join("" if x is None else str(x) for x in row) for row in self.rows]
        with self._disk_may_be_full():
            checkpoint.write_text_atomic(self.log_path, "\n".join([",".join(LOG_COLUMNS), *lines]) + "\n")
            self.save()

    def finish(self):
        """Put the best weights into the model; returns facts about the training."""
        self.adam.values[:] = self.best_values
        return {
            "updates": self.adam.steps,
            "skipped_updates": self.skipped,
            "peak_rates": self.peak_rates,
            "seconds": round(self.seconds, 1),
            "best_dev_wer": self.best[0],
            "best_dev_loss": self.best[1],
        }

    # --- training.npz -----------------------------------------------------------------------------

    def save(self):
        now = time.monotonic()
        self.seconds += now - self.saved_at
        self.saved_at = now
        meta = {key: getattr(self, key) for key in self.SAVED}
        meta["best"] = [None if math.isinf(x) else x for x in self.best]
        meta["adam_steps"] = self.adam.steps
        checkpoint.save(self.path, {**self.adam.state(), "best": self.best_values}, meta, keep=self.path_before)

    @contextlib.contextmanager
    def saved_when_interrupted(self):
        """For `with`: whoever stops inside finds everything saved, up to the last whole update."""
        try:
            yield
        except Interrupted:
            self.save()
            raise

    def save_every(self, minutes):
        if time.monotonic() - self.saved_at > 60 * minutes:
            with self._disk_may_be_full():
                self.save()

    @contextlib.contextmanager
    def _disk_may_be_full(self):
        try:
            yield
        except checkpoint.DiskFull as error:
            what = str(error).partition(";")[0]
            tell(f"{what}; {self.name} goes on, and is saved when there is room: free some space")

    def restore(self):
        """Continue from the newer of the two states that is whole, if there is one."""
        found = checkpoint.load_newest([self.path, self.path_before], tell)
        if found is None:
            return
        arrays, meta = found
        try:
            if arrays["values"].shape != self.adam.values.shape:
                raise UserError(f"{self.path} belongs to a model of another size; delete it to train {self.name} anew.")
            if "peak_rates" not in meta:  # a file of version 0.1, when the rate could not change
                at = LOG_COLUMNS.index("peak_rate")
                meta["rows"] = [[*row[:at], self.peak_rate, *row[at:]] for row in meta["rows"]]
                meta |= {"peak_rates": [[1, self.peak_rate]], "smooth_loss": 0.0}
            meta = {"roll_backs": 0, "looked_at": 0} | meta  # before there were these
            _check(arrays, meta, self.adam.values)
            self.adam.restore(arrays, meta["adam_steps"])
            self.best_values = arrays["best"]
            for key in self.SAVED:
                setattr(self, key, meta[key])
            self.best = [math.inf if x is None else x for x in meta["best"]]
            diverged, given = self.bad_in_a_row >= MAX_BAD_STEPS, self.rate * 2**self.roll_backs
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(
                f"{self.path} is not the state of a training; delete it to train {self.name} anew."
            ) from None
        if self.peak_rate != given:
            self.roll_backs = 0
            if diverged:
                self._restart_from_best(self.peak_rate)
            else:
                self.peak_rates.append([self.step + 1, self.peak_rate])
        elif diverged:  # the same rate would diverge again
            self.diverge()


def _check(arrays, meta, values):
    """Raise a KeyError, TypeError or ValueError unless all has the types and ranges that `save` writes.

    The comparisons also refuse NaN, and whole numbers too long for a float.
    """
    diverged = meta["bad_in_a_row"] >= MAX_BAD_STEPS  # then only the best weights must be good
    for key in ("values", "m", "v", "best"):
        array = arrays[key]
        finite = np.isfinite(array).all() or (diverged and key != "best")
        if array.shape != values.shape or array.dtype != values.dtype or not finite:
            raise ValueError("no weights or moments of this model")
    keys = ("step", "epoch", "done_in_epoch", "skipped", "bad_in_a_row", "adam_steps", "looked_at")
    counters = [meta[key] for key in keys]
    numbers = [meta["seconds"], *meta["sums"], *(x for x in meta["best"] if x is not None)]
    cells = [x for row in meta["rows"] for x in row if x is not None]
    if not (
        (diverged or arrays["v"].min() >= 0)
        and all(type(x) is int and 0 <= x < 2**53 for x in counters)
        and type(meta["roll_backs"]) is int and 0 <= meta["roll_backs"] < 64
        and all(type(x) in (int, float) and -1e300 < x < 1e300 for x in numbers)
        and all(type(x) in (int, float) for x in cells)
        and isinstance(meta["sums"], list) and len(meta["sums"]) == 5
        and isinstance(meta["best"], list) and len(meta["best"]) == 2
        and isinstance(meta["rows"], list) and all(len(row) == len(LOG_COLUMNS) for row in meta["rows"])
        and len(meta["peak_rates"]) > 0
        and all(type(step) is int and type(rate) is float and 0 < rate < 1e300 for step, rate in meta["peak_rates"])
    ):  # fmt: skip
        raise ValueError("no state of a training")
