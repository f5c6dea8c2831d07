"""specaugment.py: the masks obey the policy, a batch equals its utterances, nothing depends on history."""

import numpy as np
import pytest

from mini_pkd import UserError
from mini_pkd.seeds import generator
from mini_pkd.specaugment import SpecAugmentPolicy, spec_augment, time_warp

FULL = SpecAugmentPolicy(time_masks=2, max_time=10, max_time_fraction=0.25, freq_masks=2, max_freq=8)


def batch(seed, B=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=B)
    lengths[rng.integers(B)] = 1
    features = rng.standard_normal((lengths.sum(), 40)).astype(np.float32) + 10  # never 0 by itself
    return features, lengths


def runs(flags):
    """Widths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_utterances(seed):
    features, lengths = batch(seed)
    names = [f"utt{b}" for b in range(len(lengths))]
    untouched = features.copy()
    together = spec_augment(features, lengths, [generator(seed, n) for n in names], FULL)
    alone = [
        spec_augment(rows, [len(rows)], [generator(seed, n)], FULL)
        for rows, n in zip(np.split(features, np.cumsum(lengths)[:-1]), names, strict=True)
    ]
    assert np.array_equal(together, np.concatenate(alone))
    assert together.dtype == np.float32 and np.array_equal(features, untouched)
    order = np.random.default_rng(seed).permutation(len(lengths))  # and in any company
    pieces = np.split(features, np.cumsum(lengths)[:-1])
    shuffled = spec_augment(
        np.concatenate([pieces[b] for b in order]),
        lengths[order],
        [generator(seed, names[b]) for b in order],
        FULL,
    )
    assert np.array_equal(shuffled, np.concatenate([alone[b] for b in order]))


@pytest.mark.parametrize("seed", range(50))
def test_masks_obey_the_policy(seed):
    features, lengths = batch(seed, B=1)
    T = int(lengths[0])
    T = T if seed % 2 else 37
    features = np.resize(features, (T, 40)) + 0
    masked = spec_augment(features, [T], [generator(seed)], FULL)
    hidden = masked == 0
    assert np.array_equal(masked[~hidden], features[~hidden])  # what is not hidden is unchanged
    rows, columns = hidden.all(axis=1), hidden.all(axis=0)
    assert np.array_equal(hidden, rows[:, None] | columns[None, :])  # nothing but whole rows and columns
    widest = min(10, int(0.25 * T))
    assert rows.sum() <= 2 * widest and len(runs(rows)) <= 2
    assert columns.sum() <= 16 and len(runs(columns)) <= 2


def test_widths_and_places_are_uniform():
    policy = SpecAugmentPolicy(time_masks=1, max_time=4, max_time_fraction=1.0, freq_masks=0, max_freq=0)
    widths, starts = np.zeros(5), np.zeros(10)
    for seed in range(4000):
        rows = spec_augment(np.ones((10, 2)), [10], [generator(seed)], policy)[:, 0] == 0
        widths[rows.sum()] += 1
        if rows.sum() == 1:
            starts[np.flatnonzero(rows)[0]] += 1
    # 4000 / 5 = 800 each, deviation sqrt(800 * 0.8) = 25; 800 / 10 = 80 each, deviation 8.5: five of them.
    assert np.abs(widths - 800).max() < 130
    assert np.abs(starts - widths[1] / 10).max() < 45


def test_columns_are_masked_as_policy_says():
    policy = SpecAugmentPolicy(time_masks=0, max_time=0, max_time_fraction=0.0, freq_masks=1, max_freq=3)
    seen = set()
    for seed in range(200):
        masked = spec_augment(np.ones((7, 5)), [7], [generator(seed)], policy)
        columns = (masked == 0).any(axis=0)
        assert np.array_equal(columns, (masked == 0).all(axis=0)) and len(runs(columns)) <= 1
        seen.add(tuple(np.flatnonzero(columns)))
    expected = {()} | {tuple(range(f, f + w)) for w in (1, 2, 3) for f in range(5 - w + 1)}
    assert seen == expected


def test_off_means_off_and_short_utterances_survive():
    off = SpecAugmentPolicy(0, 0, 0.0, 0, 0, 0.0)
    features, lengths = batch(3)
    assert np.array_equal(spec_augment(features, lengths, [generator(0)] * len(lengths), off), features)
    everything = SpecAugmentPolicy(3, 100, 1.0, 3, 100)
    for seed in range(30):
        assert spec_augment(np.ones((1, 40)), [1], [generator(seed)], everything).shape == (1, 40)
    assert spec_augment(np.ones((0, 40)), [], [], FULL).shape == (0, 40)


def test_mismatches_and_bad_policies_are_refused():
    with pytest.raises(ValueError, match="agree"):
        spec_augment(np.ones((5, 4)), [2, 2], [generator(0)] * 2, FULL)
    with pytest.raises(ValueError, match="agree"):
        spec_augment(np.ones((4, 4)), [2, 2], [generator(0)], FULL)
    with pytest.raises(UserError, match="max_time_fraction"):
        SpecAugmentPolicy(max_time_fraction=1.5)
    with pytest.raises(UserError, match="time_masks"):
        SpecAugmentPolicy(time_masks=-1)
    with pytest.raises(UserError, match="max_freq"):
        SpecAugmentPolicy(max_freq=2.5)


# ---------------------------------------------------------------- generator


@pytest.mark.parametrize("T", [3, 4, 50])
def test_time_warp_interpolates_and_never_extrapolates(T):
    """The first column says where each row came from; the others are noise.  On a ramp alone, a straight line through
    two rows that do not surround the place would give the same number."""
    rows = np.random.default_rng(T).standard_normal((T, 6))
    rows[:, 0] = np.arange(T)
    for seed in range(100):
        warped = time_warp(rows, generator(seed), 0.4)
        for column in range(1, 6):
            expected = np.interp(warped[:, 0], rows[:, 0], rows[:, column])
            np.testing.assert_allclose(warped[:, column], expected, atol=1e-12)


def test_time_warp_moves_a_point_and_keeps_the_ends():
    """A ramp shows where each row came from: monotone, ends fixed, two straight pieces, never faster than twice."""
    T = 50
    ramp = np.arange(T, dtype=np.float64)[:, None]
    moved = 0
    for seed in range(200):
        warped = time_warp(ramp, generator(seed), 0.2)[:, 0]
        steps = np.diff(warped)
        assert warped[0] == 0 and abs(warped[-1] - (T - 1)) < 1e-9
        assert (steps >= 0.5 - 1e-9).all() and (steps <= 2 + 1e-9).all()
        assert np.abs(warped - ramp[:, 0]).max() <= 0.2 * T + 1e-9
        assert (np.abs(np.diff(steps)) > 1e-9).sum() <= 2  # the slope changes at one place only
        moved += np.abs(warped - ramp[:, 0]).max() > 1
    assert moved > 100
    policy = SpecAugmentPolicy(0, 0, 0.0, 0, 0, 0.2)
    features, lengths = batch(3)
    together = spec_augment(features, lengths, [generator(b) for b in range(len(lengths))], policy)
    start = 0
    for b, T in enumerate(lengths):
        alone = spec_augment(features[start : start + T], [T], [generator(b)], policy)
        assert np.array_equal(together[start : start + T], alone)
        start += T
