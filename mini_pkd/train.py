"""The one training loop: RNN-T alone, or RNN-T + KL when a teacher is given.

    for each epoch, for each batch:   mask features -> encoder, predictor -> lattice loss -> backward -> Adam

The teacher, when there is one, sees the same masked features and runs without dropout and without the tape.

Whatever is random is drawn from generator(seed, model, what, when): batches from the epoch, masks from
(epoch, utterance), dropout from the step.  History plays no part, so a checkpoint needs the weights, Adam's two
moments and a few counters, and a run that was killed and continued ends in the same bits as one that was not
(for one number of threads: BLAS and reductions may round differently for another).

After every `dev_every` epochs the dev set is decoded greedily; the weights with the lowest dev WER are the
ones that are kept (ties go to the lower dev loss).  Test sets are never looked at here.

A step whose loss or gradient is not finite changes no weights.  After several in a row, or where even the dev loss is
not finite, the weights may be beyond repair although each of them still is a number: the training stops, and goes on
only with another peak rate, from its best weights so far, which had a finite dev loss.  Any training can be continued
with another peak rate; from which step on stands in its checkpoint, its log and its results.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import UserError, checkpoint, wer
from .conformer import ConformerConfig
from .corpus import collate, epoch_batches, usable_utterances
from .corpus_folder import Problem
from .decode import greedy
from .feature_store import FeatureStore
from .lattice_kl import distillation_loss
from .layers import NO_DROPOUT, DropoutKeys
from .memory import keep_freed_memory
from .optimizer import Adam, learning_rate
from .rnnt_loss import rnnt_loss
from .seeds import generator
from .specaugment import spec_augment
from .tensor import no_grad

MAX_BAD_STEPS = 5  # this many non-finite losses or gradients in a row stop the run
LOG_COLUMNS = (
    "epoch", "step", "updates", "loss", "rnnt", "kl", "gradient_norm", "skipped", "peak_rate", "dev_loss", "dev_wer",
    "seconds",
)  # fmt: skip


class Interrupted(Exception):
    """The user or the system asked to stop; everything is saved and the same command continues."""


class Diverged(UserError):
    """A training came to numbers that are not finite and needs a lower rate to go on."""


# --- data ---------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """A feature store with the label ids of its utterances, and which of them can be used."""

    store: FeatureStore
    targets: list  # one int64 array per utterance, None where the vocabulary lacks a character
    indices: np.ndarray

    @classmethod
    def encode(cls, store, bpe, max_frames=None, reduction=2**ConformerConfig.pools, strict=False):
        """-> (Part, problems): utterances with unknown characters or that no lattice can hold are left out and listed.

        reduction: feature rows per row of the encoder.  strict: a transcript with unknown characters raises.
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
            raise UserError(f"utterance {problems[0]} (leave out --strict to skip and list it).")
        lengths = np.asarray(store.lengths)[spelled]
        label_lengths, ids = [len(targets[i]) for i in spelled], [store.ids[i] for i in spelled]
        kept, misfits = usable_utterances(lengths, label_lengths, reduction, max_frames, ids)
        problems += misfits
        if not kept:
            raise UserError(
                f"no utterance in {store.folder} can be used; the first problem is {problems[0]}: "
                f"check transcripts, or raise max_frames."
            )
        kept = np.array(spelled, dtype=np.int64)[kept]
        return cls(store, targets, kept), problems

    def batch(self, indices):
        """The ragged Batch of these utterances."""
        return collate(self.store, indices, self.targets)

    def batches(self, max_frames, max_utterances, **options):
        """Groups of indices; see corpus.epoch_batches."""
        return epoch_batches(
            self.store.lengths, max_frames, max_utterances, indices=self.indices, **options
        )


# --- one step ---------------------------------------------------------------------------------------------------


def lattice_loss(model, teacher, batch, features, settings, dropout=NO_DROPOUT):
    """-> (loss Tensor, RNN-T per utterance (B,), KL per utterance (B,)), the loss being the batch's mean."""
    student, lengths = model.lattice_inputs(batch, features, dropout)
    if teacher is None:
        loss, rnnt = rnnt_loss(*student, batch.labels, lengths, batch.label_lengths)
        return loss, rnnt, np.zeros_like(rnnt)
    with no_grad():
        taught, teacher_lengths = teacher.lattice_inputs(batch, features)
    if not np.array_equal(lengths, teacher_lengths):
        raise UserError("teacher and student have different frame rates: distil between equal reductions.")
    return distillation_loss(
        student, tuple(t.data for t in taught), batch.labels, lengths, batch.label_lengths,
        alpha=settings.alpha, temperature=settings.temperature, kind=settings.kl, mixing=settings.mixing,
    )  # fmt: skip


def evaluate(model, part, bpe, settings):
    """Mean RNN-T loss per utterance, and greedy WER, over a dev set; both inf when a loss is not finite."""
    losses, references, hypotheses = [], {}, {}
    for indices in part.batches(settings.batch_frames, 32, shuffle=False):
        batch = part.batch(indices)
        with no_grad():
            inputs, lengths = model.lattice_inputs(batch, batch.features)
            losses.append(rnnt_loss(*inputs, batch.labels, lengths, batch.label_lengths)[1])
        if not np.isfinite(losses[-1]).all():  # its scores could not be decoded either
            return math.inf, math.inf
        decoded = greedy(model, inputs[0].data, lengths, settings.max_symbols)
        for i, labels in zip(indices, decoded, strict=True):
            references[part.store.ids[i]] = part.store.texts[i]
            hypotheses[part.store.ids[i]] = bpe.decode(labels)
    return float(np.concatenate(losses).mean()), wer.score(references, hypotheses).wer


# --- the loop -----------------------------------------------------------------------------------------------------


def train(model, train_part, dev_part, bpe, settings, folder, seed, name, teacher=None, stop=None, progress=True,
          slot=None):  # fmt: skip
    """Train `model` in place to its best dev weights; returns {"updates", "seconds", "best_dev_wer", ...}.

    folder    gets training.npz (the state, replaced now and then) and log.csv (a line per epoch)
    name      of the model: with `seed`, what its random numbers are drawn from
    teacher   a Transducer over the same symbols, or None
    slot      the line of the progress bar, when several models train side by side
    stop      a StopSignal; when its flag is up, the state is saved and Interrupted is raised
    Raises Diverged when MAX_BAD_STEPS losses or gradients in a row were not finite, and again until the rate changes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if teacher is not None and teacher.config.symbols != model.config.symbols:
        raise UserError(
            f"the teacher of {name} knows {teacher.config.symbols} symbols and the student "
            f"{model.config.symbols}: distillation needs one vocabulary."
        )
    run = _Run(model, folder, settings, seed, name)
    plans = [
        train_part.batches(
            settings.batch_frames, settings.batch_utterances, seed=seed, epoch=epoch,
            curriculum_epochs=settings.curriculum_epochs,
        )
        for epoch in range(settings.epochs)
    ]  # fmt: skip
    total = sum(map(len, plans))
    run.restore()
    keep_freed_memory()  # from here on: what Adam has copied into its own buffers should go back to the system
    bar = tqdm(
        total=total, initial=run.step, desc=name, unit="batch", disable=not progress, position=slot, leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True, smoothing=0.1,
    )  # fmt: skip
    with bar:
        for epoch in range(run.epoch, settings.epochs):
            for indices in plans[epoch][run.done_in_epoch :]:
                run.advance(train_part.batch(indices), teacher, total, epoch)
                bar.update()
                bar.set_postfix(epoch=epoch + 1, loss=f"{run.smooth_loss:.2f}", refresh=False)
                if stop is not None and stop.raised:
                    run.save()
                    raise Interrupted
                if time.monotonic() - run.saved_at > 60 * settings.checkpoint_minutes:
                    run.save()
            last = epoch + 1 == settings.epochs
            looked = evaluate(model, dev_part, bpe, settings) if last or (epoch + 1) % settings.dev_every == 0 else None
            if looked and not math.isfinite(looked[0]):
                run.diverge()
            run.end_epoch(epoch, looked)
    return run.finish()


class _Run:
    """The state of one training: everything that a checkpoint holds."""

    KEYS = ("step", "epoch", "done_in_epoch", "skipped", "bad_in_a_row", "sums", "rows", "seconds", "peak_rates")

    def __init__(self, model, folder, settings, seed, name):
        self.model, self.settings, self.seed, self.name = model, settings, seed, name
        self.path, self.log_path = folder / "training.npz", folder / "log.csv"
        self.adam = Adam(model, settings.clip)
        self.best_values = self.adam.values.copy()
        self.best = [math.inf, math.inf]  # dev WER, dev loss
        self.step = self.epoch = self.done_in_epoch = self.skipped = self.bad_in_a_row = 0
        self.sums = [0.0] * 5  # over this epoch: steps, loss, rnnt, kl, gradient norm
        self.rows = []
        self.peak_rates = [[1, settings.peak_rate]]  # [first step, peak rate]
        self.smooth_loss = 0.0
        self.seconds, self.saved_at = 0.0, time.monotonic()

    def restore(self):
        """Continue from training.npz if it is there."""
        if not self.path.exists():
            return
        arrays, meta = checkpoint.load(self.path)
        meta.setdefault("peak_rates", [[1, self.settings.peak_rate]])  # not in files of version 0.1
        try:
            if arrays["values"].shape != self.adam.values.shape:
                raise UserError(f"{self.path} belongs to a model of another size: delete it to train {self.name} anew.")
            _check_state(arrays, meta, self.adam.values)
            self.adam.restore(arrays, meta["adam_steps"])
            self.best_values = arrays["best"]
            for key in self.KEYS:
                setattr(self, key, meta[key])
            self.best = [math.inf if x is None else x for x in meta["best"]]
            diverged, rate = self.bad_in_a_row >= MAX_BAD_STEPS, self.peak_rates[-1][1]
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{self.path} is no state of a training: delete it to train {self.name} anew.") from None
        if self.settings.peak_rate != rate:
            self.peak_rates.append([self.step + 1, self.settings.peak_rate])
            if diverged:
                self.adam.restore({"values": self.best_values, "m": 0, "v": 0}, self.adam.steps)
                self.bad_in_a_row = 0
        elif diverged:  # doing the same again would end the same
            self.diverge()

    def save(self):
        now = time.monotonic()
        self.seconds += now - self.saved_at
        self.saved_at = now
        meta = {key: getattr(self, key) for key in self.KEYS}
        meta["best"] = [None if math.isinf(x) else x for x in self.best]
        meta["adam_steps"] = self.adam.steps
        checkpoint.save(self.path, {**self.adam.state(), "best": self.best_values}, meta)

    def advance(self, batch, teacher, total, epoch):
        """One update."""
        settings, seed, name = self.settings, self.seed, self.name
        self.step += 1
        self.done_in_epoch += 1
        masks = [generator(seed, name, "masks", epoch, i) for i in batch.ids]
        features = spec_augment(batch.features, batch.lengths, masks, settings.spec_augment())
        dropout = DropoutKeys(settings.dropout, generator(seed, name, "dropout", self.step))
        loss, rnnt, kl = lattice_loss(self.model, teacher, batch, features, settings, dropout)
        value, norm = float(loss.data), math.nan
        if math.isfinite(value):
            loss.backward()
            rate = learning_rate(
                self.step, total, settings.peak_rate, settings.warmup_steps, settings.floor_rate
            )
            norm = self.adam.step(rate)
        if not math.isfinite(norm):
            self.skipped += 1
            self.bad_in_a_row += 1
            if self.bad_in_a_row >= MAX_BAD_STEPS:
                self.diverge()
            return
        self.bad_in_a_row = 0
        for i, x in enumerate((1.0, value, float(rnnt.mean()), float(kl.mean()), norm)):
            self.sums[i] += x
        self.smooth_loss = value if not self.smooth_loss else 0.95 * self.smooth_loss + 0.05 * value

    def diverge(self):
        """Save, so that the next command knows, and stop."""
        self.bad_in_a_row = MAX_BAD_STEPS
        self.save()
        raise Diverged(
            f"{self.name} has diverged: at step {self.step} the loss or its gradient was not finite, {MAX_BAD_STEPS} "
            f"times in a row or on the dev set: lower peak_rate, and it goes on from its best weights so far"
        )

    def end_epoch(self, epoch, looked):
        """Log, keep the best weights, save."""
        self.epoch, self.done_in_epoch = epoch + 1, 0
        dev_loss, dev_wer = looked or (None, None)
        if looked and [dev_wer, dev_loss] < self.best:
            self.best = [dev_wer, dev_loss]
            self.best_values = self.adam.values.copy()
        n = max(1.0, self.sums[0])
        loss, rnnt, kl, norm = (round(x / n, 4) for x in self.sums[1:])
        self.sums = [0.0] * 5
        seconds = self.seconds + time.monotonic() - self.saved_at
        self.rows.append(
            [epoch + 1, self.step, self.adam.steps, loss, rnnt, kl, norm, self.skipped,
             self.peak_rates[-1][1],
             None if dev_loss is None else round(dev_loss, 4), None if dev_wer is None else round(dev_wer, 4),
             round(seconds, 1)]
        )  # fmt: skip
        lines = [",".join("" if x is None else str(x) for x in row) for row in self.rows]
        checkpoint.write_text_atomic(self.log_path, "\n".join([",".join(LOG_COLUMNS), *lines]) + "\n")
        self.save()

    def finish(self):
        """The best weights into the model; what there is to say about the training."""
        self.adam.values[:] = self.best_values
        return {
            "updates": self.adam.steps,
            "skipped_updates": self.skipped,
            "peak_rates": self.peak_rates,
            "seconds": round(self.seconds, 1),
            "best_dev_wer": self.best[0],
            "best_dev_loss": self.best[1],
        }


def _check_state(arrays, meta, values):
    """What `_Run.save` wrote has these types; anything else is a KeyError, TypeError or ValueError.

    Comparing before converting keeps NaN and whole numbers too long for a float out.
    """
    diverged = meta["bad_in_a_row"] >= MAX_BAD_STEPS  # then only the best weights are still good
    for key in ("values", "m", "v", "best"):
        array = arrays[key]
        finite = np.isfinite(array).all() or (diverged and key != "best")
        if array.shape != values.shape or array.dtype != values.dtype or not finite:
            raise ValueError("no weights or moments of this model")
    counters = [meta[key] for key in ("step", "epoch", "done_in_epoch", "skipped", "bad_in_a_row", "adam_steps")]
    numbers = [meta["seconds"], *meta["sums"], *(x for x in meta["best"] if x is not None)]
    cells = [x for row in meta["rows"] for x in row if x is not None]
    if not (
        (diverged or arrays["v"].min() >= 0)
        and all(type(x) is int and 0 <= x < 2**53 for x in counters)
        and all(type(x) in (int, float) and -1e300 < x < 1e300 for x in numbers)
        and all(type(x) in (int, float) for x in cells)
        and isinstance(meta["sums"], list) and len(meta["sums"]) == 5
        and isinstance(meta["best"], list) and len(meta["best"]) == 2
        and isinstance(meta["rows"], list) and all(len(row) == len(LOG_COLUMNS) for row in meta["rows"])
        and len(meta["peak_rates"]) > 0
        and all(type(step) is int and type(rate) is float and 0 < rate < 1e300 for step, rate in meta["peak_rates"])
    ):  # fmt: skip
        raise ValueError("no state of a training")
