"""What a training will do: the batches of every epoch, and how much work they are.

Only one epoch's batches are in memory, made again whenever somebody asks: they are a function of (seed, epoch).  At the
start every epoch is made once, to be counted, because the learning rate depends on the number of all updates.

Work is counted in floating-point operations of each utterance (estimate.py).  Batches would mislead: those of a
curriculum's first epoch are a fraction of the others'.
"""

import numpy as np

from .estimate import flop_of_utterances


class Plan:
    """The epochs of a training of `model`, taught by `teacher` or None, on a Part.

    updates     batches of all epochs together
    warmup      those of them in which the learning rate grows: at most a fifth, or training would end before its peak
    flop (n,)   operations of each utterance of the store, forward and backward
    work        operations before each epoch, and at the end those of all (epochs + 1,)
    """

    def __init__(self, part, settings, seed, model, teacher=None):
        self.part, self.settings, self.seed = part, settings, seed
        labels = np.array([0 if target is None else len(target) for target in part.targets])
        frames = np.asarray(part.store.lengths)
        self.flop = flop_of_utterances(model.config, teacher and teacher.config, frames, labels, settings)
        self.updates, work = 0, []
        for epoch in range(settings.epochs):
            batches = self.batches(epoch)
            self.updates += len(batches)
            work.append(self.flop_of(batches))
        self.work = np.cumsum([0.0, *work])
        self.warmup = min(settings.warmup_steps, self.updates // 5)

    def batches(self, epoch):
        """Lists of indices into the store."""
        return self.part.batches(
            self.settings.batch_frames, self.settings.batch_utterances, seed=self.seed, epoch=epoch,
            curriculum_epochs=self.settings.curriculum_epochs,
        )  # fmt: skip

    def flop_of(self, batches):
        return float(self.flop[[i for batch in batches for i in batch]].sum())

    def flop_before(self, epoch, batch):
        """Operations before this batch of this epoch."""
        before = self.flop_of(self.batches(epoch)[:batch]) if batch else 0.0
        return float(self.work[epoch]) + before
