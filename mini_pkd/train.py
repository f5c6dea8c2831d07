"""The one training loop: RNN-T alone, or RNN-T + KL when a teacher is given.

    for each epoch, for each batch:   augment features -> encoder, predictor -> lattice loss -> backward -> Adam
    a batch too large for the memory: all up to backward micro-batch by micro-batch, which adds up to the same gradient
    after every dev_every epochs, and every dev_updates updates:
                                      loss and greedy WER of the dev set; the weights with the lowest WER are kept

The teacher, when there is one, sees the same masked features and runs without dropout and without the tape.  Test sets
are never used here.

All random numbers are functions of (seed, model, what, when): batches of the epoch, masks of epoch and utterance,
dropout of the step.  What was drawn before does not matter, so a run that was killed and continued ends in the same
bits as one that was not, with the same number of threads (with another, sums may be rounded differently).

Left out: what a stopped training must remember, and when it has diverged (training_state.py); where batches with
labels come from (`Part` in prepared_corpus.py), in which order (plan.py); the progress bar (progress.py).
"""

import functools
import math
from pathlib import Path

import numpy as np

from . import UserError, wer
from .decode import greedy
from .lattice_kl import distillation_loss
from .layers import NO_DROPOUT, DropoutKeys
from .memory import keep_freed_memory
from .optimizer import Adam, learning_rate
from .plan import Plan
from .progress import Progress
from .rnnt_loss import rnnt_loss
from .seeds import generator
from .specaugment import spec_augment
from .stop_signal import raise_if
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


def add_gradient(model, teacher, batch, normaliser, share, settings, draw, epoch, step, part=0):
    """Add a micro-batch's part of the gradient; returns its parts of loss, RNN-T and KL (3,), not finite if they are.

    share     of the update's utterances that it holds: its mean has this weight in the mean of the whole batch
    `draw(what, *when)` is the generator of these random numbers; `part` counts the micro-batches of the update.
    """
    masks = [draw("masks", epoch, i) for i in batch.ids]
    features = spec_augment(batch.features, batch.lengths, masks, settings.spec_augment(), normaliser)
    dropout = DropoutKeys(settings.dropout, draw("dropout", step, *([part] if part else [])))
    loss, rnnt, kl = lattice_loss(model, teacher, batch, features, settings, dropout)
    if math.isfinite(loss.data):
        loss.backward(share)
    return share * np.array([loss.data, rnnt.mean(), kl.mean()])


def train_step(model, teacher, parts, normaliser, adam, rate, settings, draw, epoch, step, stop=None):
    """One update from a batch in parts, which no layer notices -> (loss, RNN-T and KL, means over it; gradient's norm).

    None if the loss or its gradient is not finite, Interrupted between two parts: then no weight was changed.
    """
    utterances, means = sum(len(batch.ids) for batch in parts), np.zeros(3)
    for part, batch in enumerate(parts):
        if part:
            raise_if(stop)
        share = len(batch.ids) / utterances
        means += add_gradient(model, teacher, batch, normaliser, share, settings, draw, epoch, step, part)
        if not math.isfinite(means[0]):
            adam.gradients[:] = 0
            return None
    norm = adam.step(rate)
    return (*means.tolist(), norm) if math.isfinite(norm) else None


# --- the dev set ----------------------------------------------------------------------------------


def evaluate(model, part, bpe, settings, stop=None):
    """-> (mean RNN-T loss per utterance, greedy WER) of a dev set; both are inf when a loss is not finite."""
    losses, references, hypotheses = [], {}, {}
    for indices in part.batches(settings.frames_at_once, 32, shuffle=False):
        raise_if(stop)
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

    folder    gets training.npz (the state, replaced now and then), log.csv (a line per epoch) and steps.csv
    name      of the model; `seed` and `name` decide its random numbers
    teacher   a Transducer over the same symbols, or None
    stop      a StopSignal; once it is raised, the state is saved and Interrupted is raised
    slot      the line of the progress bar, when several models train side by side
    Raises Diverged when losses are not finite again and again (training_state.py); only a lower peak_rate leads on.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    symbols = model.config.symbols
    if teacher is not None and teacher.config.symbols != symbols:
        raise UserError(
            f"{name} has {symbols} symbols and its teacher {teacher.config.symbols}; give both one vocabulary."
        )
    dev_part = dev_part.sample(settings.dev_utterances, generator(seed, "dev"))
    plan = Plan(train_part, settings, seed, model, teacher)
    draw, normaliser = functools.partial(generator, seed, name), train_part.store.normaliser
    adam = Adam(model, settings.clip)
    state = TrainingState(adam, folder, name, settings.peak_rate)
    state.restore()
    keep_freed_memory()  # only now: the memory whose contents Adam has copied may go back to the system
    look = functools.partial(state.look, functools.partial(evaluate, model, dev_part, bpe, settings, stop))
    with Progress(plan, state, folder, progress, slot) as shown, state.saved_when_interrupted():
        for epoch in range(state.epoch, settings.epochs):
            for indices in plan.batches(epoch)[state.done_in_epoch :]:  # done_in_epoch > 0: it was stopped here
                if state.look_is_due(settings.dev_updates):
                    state.log(*look())
                step = state.step + 1
                rate = learning_rate(step, plan.updates, state.rate, plan.warmup, settings.floor_rate)
                parts = train_part.micro_batches(indices, settings.microbatch_frames)
                means = train_step(model, teacher, parts, normaliser, adam, rate, settings, draw, epoch, step, stop)
                state.count_step(means)
                shown.step(indices, means, rate)
                raise_if(stop)
                state.save_every(settings.checkpoint_minutes)

            due = epoch + 1 == settings.epochs or (epoch + 1) % settings.dev_every == 0
            state.end_epoch(*look() if due or state.look_is_due(settings.dev_updates) else (None, None))
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
        normaliser = None  # these rows are no MFCCs

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
