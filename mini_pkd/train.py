"""The one training loop: RNN-T alone, or RNN-T + KL when a teacher is given.

    for each epoch, for each batch:   mask features -> encoder, predictor -> lattice loss -> backward -> Adam
    after every dev_every epochs:     loss and greedy WER of the dev set; the weights with the lowest WER are kept

The teacher, when there is one, sees the same masked features and runs without dropout and without the tape.  Test sets
are never used here.

All random numbers are functions of (seed, model, what, when): batches of the epoch, masks of epoch and utterance,
dropout of the step.  What was drawn before does not matter, so a run that was killed and continued ends in the same
bits as one that was not, with the same number of threads (with another, sums may be rounded differently).

Left out: what a stopped training must remember, and when it has diverged (training_state.py); where batches with
labels come from (`Part` in prepared_corpus.py).
"""

import functools
import math
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from . import UserError, wer
from .decode import greedy
from .lattice_kl import distillation_loss
from .layers import NO_DROPOUT, DropoutKeys
from .memory import keep_freed_memory
from .optimizer import Adam, learning_rate
from .rnnt_loss import rnnt_loss
from .seeds import generator
from .specaugment import spec_augment
from .stop_signal import Interrupted
from .tensor import no_grad
from .training_state import TrainingState

# --- one step -------------------------------------------------------------------------------------


def lattice_loss(model, teacher, batch, features, settings, dropout=NO_DROPOUT):
    """-> (loss Tensor, the mean over the batch; its parts for each utterance: RNN-T loss (B,) and KL (B,))."""
    student, lengths = model.lattice_inputs(batch, features, dropout)
    keep_bytes = settings.keep_mb * 2**20
    if teacher is None:
        loss, rnnt = rnnt_loss(*student, batch.labels, lengths, batch.label_lengths, keep_bytes=keep_bytes)
        return loss, rnnt, np.zeros_like(rnnt)
    with no_grad():
        taught, teacher_lengths = teacher.lattice_inputs(batch, features)
    if not np.array_equal(lengths, teacher_lengths):
        raise UserError("teacher and student have different frame rates; give both the same reduction.")
    return distillation_loss(
        student, tuple(t.data for t in taught), batch.labels, lengths, batch.label_lengths,
        alpha=settings.alpha, temperature=settings.temperature, kind=settings.kl, mixing=settings.mixing,
        kl_weighting=settings.kl_weighting, keep_bytes=keep_bytes,
    )  # fmt: skip


def train_step(model, teacher, batch, adam, rate, settings, draw, epoch, step):
    """One update -> (loss, RNN-T and KL, means over the batch; norm of the gradient).

    None if the loss or its gradient is not finite: then no weight was changed.
    `draw(what, *when)` is the generator of these random numbers.
    """
    masks = [draw("masks", epoch, i) for i in batch.ids]
    features = spec_augment(batch.features, batch.lengths, masks, settings.spec_augment())
    dropout = DropoutKeys(settings.dropout, draw("dropout", step))
    loss, rnnt, kl = lattice_loss(model, teacher, batch, features, settings, dropout)
    if not math.isfinite(loss.data):
        return None
    loss.backward()
    norm = adam.step(rate)
    if not math.isfinite(norm):
        return None
    return float(loss.data), float(rnnt.mean()), float(kl.mean()), norm


# --- the dev set ----------------------------------------------------------------------------------


def evaluate(model, part, bpe, settings):
    """-> (mean RNN-T loss per utterance, greedy WER) of a dev set; both are inf when a loss is not finite."""
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


# --- the loop -------------------------------------------------------------------------------------


def train(model, train_part, dev_part, bpe, settings, folder, seed, name, teacher=None, stop=None, progress=True,
          slot=None):  # fmt: skip
    """Train `model` in place to its best dev weights; returns {"updates", "seconds", "best_dev_wer", ...}.

    folder    gets training.npz (the state, replaced now and then) and log.csv (a line per epoch)
    name      of the model; `seed` and `name` decide its random numbers
    teacher   a Transducer over the same symbols, or None
    stop      a StopSignal; once it is raised, the state is saved and Interrupted is raised
    slot      the line of the progress bar, when several models train side by side
    Raises Diverged when several losses or gradients in a row are not finite; only another peak_rate leads on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    symbols = model.config.symbols
    if teacher is not None and teacher.config.symbols != symbols:
        raise UserError(
            f"{name} has {symbols} symbols and its teacher {teacher.config.symbols}; give both one vocabulary."
        )
    epoch_batches = [
        train_part.batches(
            settings.batch_frames, settings.batch_utterances, seed=seed, epoch=epoch,
            curriculum_epochs=settings.curriculum_epochs,
        )
        for epoch in range(settings.epochs)
    ]  # fmt: skip
    total = sum(map(len, epoch_batches))
    draw = functools.partial(generator, seed, name)
    adam = Adam(model, settings.clip)
    state = TrainingState(adam, folder, name, settings.peak_rate)
    state.restore()
    keep_freed_memory()  # only now: the memory whose contents Adam has copied may go back to the system
    bar = tqdm(
        total=total, initial=state.step, desc=name, unit="batch", disable=not progress, position=slot, leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True, smoothing=0.1,
    )  # fmt: skip
    with bar:
        for epoch in range(state.epoch, settings.epochs):
            for indices in epoch_batches[epoch][state.done_in_epoch :]:  # done_in_epoch > 0: it was stopped here
                step = state.step + 1
                rate = learning_rate(step, total, settings.peak_rate, settings.warmup_steps, settings.floor_rate)
                means = train_step(model, teacher, train_part.batch(indices), adam, rate, settings, draw, epoch, step)
                state.count_step(means)
                bar.update()
                bar.set_postfix(epoch=epoch + 1, loss=f"{state.smooth_loss:.2f}", refresh=False)
                if stop is not None and stop.raised:
                    state.save()
                    raise Interrupted
                state.save_every(settings.checkpoint_minutes)

            dev_loss = dev_wer = None
            if epoch + 1 == settings.epochs or (epoch + 1) % settings.dev_every == 0:
                dev_loss, dev_wer = evaluate(model, dev_part, bpe, settings)
                if not math.isfinite(dev_loss):
                    state.diverge()
                if [dev_wer, dev_loss] < state.best:  # among equal WERs the lower loss
                    state.keep_best(dev_loss, dev_wer)
            state.end_epoch(dev_loss, dev_wer)
    return state.finish()


def demo():
    """Eight invented utterances, thirty steps.  A word is eight frames of one pattern, with a little noise."""
    import dataclasses
    import tempfile

    from .bpe import BPE
    from .prepared_corpus import Part
    from .scales import TINY
    from .transducer import Transducer

    rng = generator(0, "demo")
    patterns = {word: rng.standard_normal((1, 40)) for word in ("RED", "GREEN", "BLUE")}

    class Invented(list):  # the feature rows of each utterance, and what else a Part needs of a feature store
        texts = ids = ["RED", "GREEN", "BLUE", "RED GREEN", "GREEN RED", "BLUE RED", "GREEN BLUE", "RED GREEN BLUE"]
        lengths = np.array([8 * len(text.split()) for text in texts])

    store = Invented()
    for text in store.texts:
        rows = np.concatenate([patterns[word].repeat(8, axis=0) for word in text.split()])  # (T, F)
        store.append((rows + 0.1 * rng.standard_normal(rows.shape)).astype(np.float32))
    bpe = BPE.train(dict.fromkeys(patterns, 1), vocab_size=40)
    part, _ = Part.encode(store, bpe)
    schedule = {"epochs": 30, "dev_every": 30, "peak_rate": 0.01, "warmup_steps": 5}
    nothing_hidden = {"dropout": 0.0, "time_masks": 0, "freq_masks": 0, "max_warp_fraction": 0.0}
    settings = dataclasses.replace(TINY.settings, **schedule, **nothing_hidden)
    size = dataclasses.replace(TINY.sizes["61"], width=48, window=8, kernel=4, joint_width=64)
    model = Transducer(size.config(bpe.size), generator(0, "weights"))
    print(f"{model.num_parameters()} parameters; loss before {evaluate(model, part, bpe, settings)[0]:.2f}")
    with tempfile.TemporaryDirectory() as folder:
        result = train(model, part, part, bpe, settings, folder, seed=0, name="T1", progress=False)
    print(f"after {result['updates']} steps {result['best_dev_loss']:.2f}, WER {result['best_dev_wer']:.2f}")
    for i in (3, 7):
        enc, lengths = model.encode(store[i], store.lengths[i : i + 1])
        print(f"said: {store.texts[i]:16s} understood: {bpe.decode(greedy(model, enc, lengths)[0])}")


if __name__ == "__main__":
    demo()
