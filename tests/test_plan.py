"""plan.py: every epoch's batches when they are asked for, and work that adds up."""

import dataclasses

import numpy as np
import pytest
from handful import SETTINGS, new_model

from mini_pkd.estimate import training_flop
from mini_pkd.plan import Plan
from mini_pkd.prepared_corpus import Part


def test_a_plan_counts_what_it_will_hand_out(handful):
    part, bpe, _ = handful
    settings = dataclasses.replace(SETTINGS, epochs=4, batch_utterances=1, curriculum_epochs=2)
    plan = Plan(part, settings, 7, new_model(bpe), new_model(bpe, seed=9))
    epochs = [plan.batches(epoch) for epoch in range(4)]
    assert epochs == [
        part.batches(settings.batch_frames, 1, seed=7, epoch=epoch, curriculum_epochs=2) for epoch in range(4)
    ]
    assert plan.updates == sum(map(len, epochs)) == 3 + 4 + 6 + 6
    assert plan.warmup == 19 // 5 and SETTINGS.warmup_steps > 4
    assert Plan(part, dataclasses.replace(settings, warmup_steps=2), 7, new_model(bpe)).warmup == 2
    done = 0.0
    for epoch, batches in enumerate(epochs):
        assert plan.work[epoch] == pytest.approx(done, rel=1e-12)
        for i, batch in enumerate(batches):
            assert plan.flop_before(epoch, i) == pytest.approx(done, rel=1e-12)
            done += plan.flop_of([batch])
    assert plan.work[4] == plan.flop_before(4, 0) == pytest.approx(done, rel=1e-12)


def test_work_is_that_of_the_utterances_with_their_teacher(handful):
    part, bpe, _ = handful
    part = dataclasses.replace(part, targets=[None, *part.targets[1:]], indices=part.indices[1:])
    model, teacher = new_model(bpe), new_model(bpe, seed=9)
    alone, taught = (Plan(part, SETTINGS, 0, model, t).flop for t in (None, teacher))
    for i in part.indices:
        T, U = part.store.lengths[i], len(part.targets[i])
        sizes = model.config, T, U, np.ceil(T / 8) * (U + 1)
        assert alone[i] == pytest.approx(training_flop(*sizes), rel=1e-12)
        assert taught[i] == pytest.approx(training_flop(*sizes, teacher.config), rel=1e-12)


def test_one_epoch_is_in_memory_at_a_time(handful, monkeypatch):
    """Lists of 281241 indices for each of 40 epochs were 450 MB."""
    part, bpe, _ = handful
    alive, real = [], Part.batches

    class Batches(list):
        def __del__(self):
            alive.pop()

    def batches(self, *rest, **options):
        alive.append(0)
        assert len(alive) <= 2  # the one before goes when the new one has come
        return Batches(real(self, *rest, **options))

    monkeypatch.setattr(Part, "batches", batches)
    plan = Plan(part, dataclasses.replace(SETTINGS, epochs=50), 0, new_model(bpe))
    assert plan.updates == 100 and len(alive) <= 1


def test_a_sample_of_a_part(handful):
    part, _, _ = handful
    rng = np.random.default_rng(0)
    drawn = [part.sample(2, rng).indices.tolist() for _ in range(50)]
    assert all(len(set(d)) == 2 and d == sorted(d) and set(d) <= set(part.indices.tolist()) for d in drawn)
    assert {i for d in drawn for i in d} == set(part.indices.tolist())
    for count in (0, len(part.indices), 1000):
        assert part.sample(count, rng) is part
