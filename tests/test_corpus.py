"""corpus.py: which utterances train, the batches of an epoch, the ragged batch of a group, the demo."""

import functools
import json

import numpy as np
import pytest
from test_corpus_folder import make_part

from mini_pkd import UserError, corpus
from mini_pkd.corpus import MAX_LABELS_PER_ROW, collate, epoch_batches, usable_utterances
from mini_pkd.decode import MAX_SYMBOLS


def ragged_lengths(seed, n=200):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.integers(1, 1500, size=n - 2), [1, 1500]])


@pytest.mark.parametrize("seed", range(20))
def test_every_utterance_once_within_both_bounds(seed):
    lengths = ragged_lengths(seed)
    for shuffle in (False, True):
        batches = epoch_batches(lengths, 4000, 8, seed=seed, epoch=3, shuffle=shuffle)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(1 <= len(batch) <= 8 and lengths[batch].sum() <= 4000 for batch in batches)
        assert any(len(batch) == 8 for batch in batches)
        # Neighbours fill a batch: two that follow each other in length never fit into one.
        spread = np.mean([lengths[b].max() / lengths[b].min() for b in batches if lengths[b].min() > 50])
        assert spread < 1.6


def test_batches_are_a_function_of_seed_and_epoch():
    lengths = ragged_lengths(0)
    make = functools.partial(epoch_batches, lengths, 4000, 8)
    assert make(seed=1, epoch=5) == make(seed=1, epoch=5)
    np.random.default_rng(0).random(100)  # history is nothing to it
    versions = [make(seed=s, epoch=e) for s in range(3) for e in range(3)]
    assert len({json.dumps(v) for v in versions}) == 9
    groups = [{frozenset(b) for b in v} for v in versions]
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2  # other companions, not only another order
    firsts = [lengths[v[0]].mean() for v in versions]
    assert max(firsts) > 2 * min(firsts)  # epochs do not all begin with the same lengths
    assert make(shuffle=False, epoch=0) == make(shuffle=False, epoch=1, seed=9)


def test_subsets_bounds_and_refusals():
    lengths = ragged_lengths(1)
    kept = [3, 5, 8, 13, 21]
    assert sorted(sum(epoch_batches(lengths, 4000, 2, indices=kept), [])) == kept
    assert epoch_batches(lengths, 1500, 1, shuffle=False)[-1] == [199]
    assert epoch_batches([], 100, 4) == [] and epoch_batches(lengths, 2000, 4, indices=[]) == []
    with pytest.raises(UserError, match="1500 frames"):
        epoch_batches(lengths, 1499, 4)
    with pytest.raises(UserError, match="max_utterances is 0"):
        epoch_batches(lengths, 4000, 0)


def test_curriculum_goes_from_short_to_long():
    lengths = ragged_lengths(2)
    make = functools.partial(epoch_batches, lengths, 4000, 8, curriculum_epochs=4, curriculum_fraction=0.4)
    used = [np.array(sum(make(epoch=e), [])) for e in range(6)]
    assert [len(u) for u in used] == [80, 110, 140, 170, 200, 200]
    for u in used:
        assert len(set(u.tolist())) == len(u)
        assert sorted(lengths[u]) == sorted(lengths)[: len(u)]  # the shortest ones
    means = [lengths[b].mean() for b in make(epoch=0)]
    assert np.corrcoef(means, np.arange(len(means)))[0, 1] > 0.9
    means = [lengths[b].mean() for b in make(epoch=1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.7
    assert make(epoch=5) == epoch_batches(lengths, 4000, 8, epoch=5)


def test_usable_utterances():
    """Frames make 3, 0, 1, 1, 1250 and 5 rows: 15 labels are the limit of the first, and it is not passed."""
    frames, labels = [24, 0, 8, 1, 9999, 33], [15, 1, 6, 0, 2, 1]
    usable, problems = usable_utterances(frames, labels, reduction=8, max_frames=100, ids=list("abcdef"))
    assert usable == [0, 3, 5]
    assert [p.where for p in problems] == ["b", "c", "e"]
    assert "too short" in problems[0].reason and "6 labels for 1 encoder rows" in problems[1].reason
    assert "9999 frames" in problems[2].reason
    assert usable_utterances(np.array(frames), labels, 8)[0] == [0, 3, 4, 5]
    assert usable_utterances(frames, labels, reduction=2)[0] == [0, 2, 3, 4, 5]


def test_what_is_trained_on_can_be_decoded():
    """An average of so many labels a row is possible only if decoding says as many in a single row."""
    assert MAX_LABELS_PER_ROW <= MAX_SYMBOLS


class ListStore:
    """What collate wants of a feature store."""

    def __init__(self, rows):
        self.rows, self.ids = rows, [f"id{i}" for i in range(len(rows))]
        self.lengths = np.array([len(r) for r in rows])

    def __getitem__(self, i):
        return self.rows[i]


def test_collate_lays_utterances_end_to_end():
    rng = np.random.default_rng(0)
    store = ListStore([rng.standard_normal((T, 40)).astype(np.float32) for T in (5, 1, 9, 2, 33, 7, 8, 4, 1, 12, 3, 6)])
    targets = [list(range(1, 1 + i % 4)) for i in range(12)]  # some without labels
    for indices in ([5, 0, 11], [4], [8, 4, 0], np.array([3, 2])):
        batch = collate(store, indices, targets)
        assert batch.features.dtype == np.float32 and batch.features.shape == (batch.lengths.sum(), 40)
        assert batch.lengths.dtype == batch.labels.dtype == batch.label_lengths.dtype == np.int64
        assert batch.ids == [store.ids[i] for i in indices]
        rows = np.split(batch.features, np.cumsum(batch.lengths)[:-1])
        labels = np.split(batch.labels, np.cumsum(batch.label_lengths)[:-1])
        for i, r, u in zip(indices, rows, labels, strict=True):
            assert np.array_equal(r, store[i]) and u.tolist() == targets[i]


def test_demo_runs_on_a_small_corpus(tmp_path, capsys):
    for part in ("train", "dev"):
        make_part(tmp_path / part)
    corpus.demo(tmp_path)
    out = capsys.readouterr().out
    assert "12 utterances, 0 problems" in out and "2 utterances" in out
