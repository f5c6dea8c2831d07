"""The one training loop: RNN-T alone, or RNN-T + KL when a teacher is given.

    for each epoch, for each batch:   mask features -> encoder, predictor -> lattice loss -> backward -> Adam
    after every dev_every epochs:     loss and greedy WER of the dev set; the weights with the lowest WER are kept

The teacher, when there is one, sees the same masked features and runs without dropout and without the tape.  Test sets
are never used here.

Whatever is random is drawn from generator(seed, model, what, when): batches from the epoch, masks from
(epoch, utterance), dropout from the step.  History plays no part, so a run that was killed and continued ends in the
same bits as one that was not (for one number of threads: BLAS and reductions may round differently for another).

Left out: what a stopped training must remember, and when one counts as diverged (training_state.py); where batches
with labels come from (`Part` in prepared_corpus.py).
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
    """-> (loss Tensor, RNN-T per utterance (B,), KL per utterance (B,)), the loss being the batch's mean."""
    student, lengths = model.lattice_inputs(batch, features, dropout)
    keep_bytes = settings.keep_mb * 2**20
    if teacher is None:
        loss, rnnt = rnnt_loss(*student, batch.labels, lengths, batch.label_lengths, keep_bytes=keep_bytes)
        return loss, rnnt, np.zeros_like(rnnt)
    with no_grad():
        taught, teacher_lengths = teacher.lattice_inputs(batch, features)
    if not np.array_equal(lengths, teacher_lengths):
        raise UserError("teacher and student have different frame rates: distil between equal reductions.")
    return distillation_loss(
        student, tuple(t.data for t in taught), batch.labels, lengths, batch.label_lengths,
        alpha=settings.alpha, temperature=settings.temperature, kind=settings.kl, mixing=settings.mixing,
        keep_bytes=keep_bytes,
    )  # fmt: skip


def train_step(model, teacher, batch, adam, rate, settings, draw, epoch, step):
    """One update -> means of loss, RNN-T and KL over the batch, and the norm of the gradient.

    None if the loss or its gradient is not finite: then no weight was changed.
    draw: (what, *when) -> the generator of these random numbers
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


# --- the loop -------------------------------------------------------------------------------------


def train(model, train_part, dev_part, bpe, settings, folder, seed, name, teacher=None, stop=None, progress=True,
          slot=None):  # fmt: skip
    """Train `model` in place to its best dev weights; returns {"updates", "seconds", "best_dev_wer", ...}.

    folder    gets training.npz (the state, replaced now and then) and log.csv (a line per epoch)
    name      of the model: with `seed`, what its random numbers are drawn from
    teacher   a Transducer over the same symbols, or None
    slot      the line of the progress bar, when several models train side by side
    stop      a StopSignal; when its flag is up, the state is saved and Interrupted is raised
    Raises Diverged when several losses or gradients in a row were not finite, and again until the rate changes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if teacher is not None and teacher.config.symbols != model.config.symbols:
        raise UserError(
            f"the teacher of {name} knows {teacher.config.symbols} symbols and the student "
            f"{model.config.symbols}: distillation needs one vocabulary."
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
    keep_freed_memory()  # from here on: what Adam has copied into its own buffers should go back to the system
    bar = tqdm(
        total=total, initial=state.step, desc=name, unit="batch", disable=not progress, position=slot, leave=False,
        mininterval=0.5 if sys.stderr.isatty() else 30, dynamic_ncols=True, smoothing=0.1,
    )  # fmt: skip
    with bar:
        for epoch in range(state.epoch, settings.epochs):
            for indices in epoch_batches[epoch][state.done_in_epoch :]:
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
    """Eight invented utterances, thirty steps.  A word is eight frames of one pattern, so there is little to learn."""
    import dataclasses
    import tempfile

    from .bpe import BPE
    from .prepared_corpus import Part
    from .scales import TINY, Size
    from .transducer import Transducer

    rng = generator(0, "demo")
    patterns = {word: rng.standard_normal((1, 40)) for word in ("RED", "GREEN", "BLUE")}

    class Invented:
        """What a Part needs of a feature store."""

        texts = ["RED", "GREEN", "BLUE", "RED GREEN", "GREEN RED", "BLUE RED", "GREEN BLUE", "RED GREEN BLUE"]
        ids = [f"utterance {i}" for i in range(len(texts))]
        lengths = np.array([8 * len(text.split()) for text in texts])

        def __getitem__(self, i):
            rows = np.concatenate([patterns[word].repeat(8, axis=0) for word in self.texts[i].split()])
            return (rows + 0.1 * generator(i, "noise").standard_normal(rows.shape)).astype(np.float32)

    store, bpe = Invented(), BPE.train(dict.fromkeys(patterns, 1), vocab_size=40)
    part, _ = Part.encode(store, bpe)
    nothing_hidden = {"dropout": 0.0, "time_masks": 0, "freq_masks": 0, "max_warp_fraction": 0.0}
    settings = dataclasses.replace(
        TINY.settings, epochs=30, dev_every=30, peak_rate=0.01, warmup_steps=5, **nothing_hidden
    )
    size = Size(
        blocks=3, width=48, heads=4, window=8, kernel=4, expansion=2, joint_width=64, lstm_layers=1, lstm_width=48
    )
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
