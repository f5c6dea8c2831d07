"""specaugment.py: each effect against a loop or a number, a batch equals its utterances, nothing depends on history."""

import dataclasses

import numpy as np
import pytest

from mini_pkd import UserError, specaugment
from mini_pkd.features import NUM_FEATURES, Normaliser, emphasise, mel_energies, mfcc
from mini_pkd.seeds import generator
from mini_pkd.specaugment import (
    SpecAugmentPolicy,
    augment_spectrum,
    mask_frequency,
    noise_floor,
    smooth_curve,
    spec_augment,
    time_warp,
    warp_mel,
)

F = NUM_FEATURES
OFF = SpecAugmentPolicy(time_masks=0, max_time=0, max_time_fraction=0.0, freq_masks=0, max_freq=0)
MASKS = SpecAugmentPolicy(time_masks=2, max_time=10, max_time_fraction=0.25, freq_masks=2, max_freq=8)
EVERYTHING = dataclasses.replace(MASKS, max_warp_fraction=0.2, max_mel_warp=0.2, max_channel_db=10.0, max_noise=0.5)

# The DCT by its formula, in float64: row k holds the k-th cosine.  COSINES @ COSINES.T is the identity.
COSINES = np.sqrt(2 / F) * np.cos(np.pi * np.outer(np.arange(F), np.arange(F) + 0.5) / F)
COSINES[0] /= np.sqrt(2)

_rng = np.random.default_rng(0)
MEAN_LOG_MEL = _rng.uniform(5, 12, F)
NORMALISER = Normaliser(COSINES @ MEAN_LOG_MEL, _rng.uniform(0.5, 5, F))


def to_log_mel(rows):
    return (rows.astype(np.float64) * NORMALISER.std + NORMALISER.mean) @ COSINES


def to_rows(log_mel):
    return NORMALISER(log_mel @ COSINES.T)


# Cepstra reach sqrt(40) x 20 = 126, of which float32 keeps 7 digits: some 1e-5, and a few operations of it.
ROUNDING = 1e-4


def batch(seed, B=6):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=B)
    lengths[rng.integers(B)] = 1
    return to_rows(rng.uniform(1, 20, (lengths.sum(), F))), lengths


def runs(flags):
    """Widths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


# --- a batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_batch_equals_its_utterances(seed):
    features, lengths = batch(seed)
    names = [f"utt{b}" for b in range(len(lengths))]
    untouched = features.copy()
    together = spec_augment(features, lengths, [generator(seed, n) for n in names], EVERYTHING, NORMALISER)
    pieces = np.split(features, np.cumsum(lengths)[:-1])
    alone = [
        spec_augment(rows, [len(rows)], [generator(seed, n)], EVERYTHING, NORMALISER)
        for rows, n in zip(pieces, names, strict=True)
    ]
    assert np.array_equal(together, np.concatenate(alone))
    assert together.dtype == np.float32 and np.array_equal(features, untouched)
    order = np.random.default_rng(seed).permutation(len(lengths))  # and in any company
    shuffled = spec_augment(
        np.concatenate([pieces[b] for b in order]), lengths[order], [generator(seed, names[b]) for b in order],
        EVERYTHING, NORMALISER,
    )  # fmt: skip
    assert np.array_equal(shuffled, np.concatenate([alone[b] for b in order]))


def test_off_means_off_and_short_utterances_survive():
    features, lengths = batch(3)
    untouched = spec_augment(features, lengths, [generator(0)] * len(lengths), OFF, NORMALISER)
    assert np.array_equal(untouched, features)
    most = SpecAugmentPolicy(3, 100, 1.0, 3, 100, 1.0, 1.0, 40.0, 1.0)
    for seed in range(30):
        for T in (1, 2, 3):
            rows = spec_augment(features[:T], [T], [generator(seed)], most, NORMALISER)
            assert rows.shape == (T, F) and np.isfinite(rows).all()
    assert spec_augment(np.ones((0, F)), [], [], EVERYTHING, NORMALISER).shape == (0, F)


def test_what_is_off_draws_nothing():
    rng = generator(0)
    spec_augment(*batch(4, B=1), [rng], OFF, NORMALISER)
    augment_spectrum(np.ones((3, F)), rng, OFF, MEAN_LOG_MEL)
    assert rng.integers(1 << 40) == generator(0).integers(1 << 40)


def test_mismatches_and_bad_policies_are_refused():
    with pytest.raises(ValueError, match="agree"):
        spec_augment(np.ones((5, 4)), [2, 2], [generator(0)] * 2, MASKS, NORMALISER)
    with pytest.raises(ValueError, match="agree"):
        spec_augment(np.ones((4, 4)), [2, 2], [generator(0)], MASKS, NORMALISER)
    with pytest.raises(UserError, match="max_time_fraction is 1.5; give a number from 0 .off. to 1"):
        SpecAugmentPolicy(max_time_fraction=1.5)
    with pytest.raises(UserError, match="time_masks"):
        SpecAugmentPolicy(time_masks=-1)
    with pytest.raises(UserError, match="max_freq"):
        SpecAugmentPolicy(max_freq=2.5)
    for name, most in {"max_mel_warp": 1, "max_channel_db": 40, "max_noise": 1}.items():
        for bad in (-0.1, most * 1.01, float("nan")):
            with pytest.raises(UserError, match=f"{name} is {bad!r}"):
                SpecAugmentPolicy(**{name: bad})
        SpecAugmentPolicy(**{name: most})


# --- the rotation ---------------------------------------------------------------------------------


def test_the_rotation_is_that_of_the_features_and_there_and_back_is_nothing():
    """Real features: a tone in noise, with digital silence at the end.  Masks of width 0 turn there and back."""
    t = np.arange(16000) / 16000
    audio = (0.1 * np.sin(2 * np.pi * 440 * t) + 0.01 * np.random.default_rng(0).standard_normal(16000)) * (t < 0.7)
    raw = mfcc(audio)
    log_mel = np.log(np.maximum(mel_energies(emphasise(audio)), 1.0))  # (T, F)
    assert np.abs(raw @ COSINES - log_mel).max() < ROUNDING and (log_mel[-10:] == 0).all()
    normaliser, seen = Normaliser.estimate([raw]), []

    def see(log_mel, rng, policy, mean):
        seen.append((log_mel.copy(), mean))
        return augment_spectrum(log_mel, rng, policy, mean)

    nothing = dataclasses.replace(OFF, freq_masks=1)
    rows = normaliser(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specaugment, "augment_spectrum", see)
        again = spec_augment(rows, [len(rows)], [generator(0)], nothing, normaliser)
    assert np.abs(again - rows).max() < ROUNDING / normaliser.std.min()
    assert again.dtype == seen[0][0].dtype == np.float32
    assert np.abs(seen[0][0] - log_mel).max() < ROUNDING  # this is what the effects are given
    assert np.abs(seen[0][1] - log_mel.mean(axis=0)).max() < ROUNDING  # and the training set's mean


def test_effects_come_in_the_order_of_a_sounds_way_to_the_model():
    """All of them again by hand, drawn from the same generator, in float64."""
    features, _ = batch(6)
    rows = features[:37]
    found = spec_augment(rows, [37], [generator(6)], EVERYTHING, NORMALISER)
    rng, T = generator(6), 37
    log_mel = to_log_mel(time_warp(rows, rng, 0.2))
    log_mel = warp_mel(log_mel, 1 + rng.uniform(-1, 1) * 0.2)
    energies = np.exp(log_mel) * smooth_curve(rng, 10.0)
    energies = energies + noise_floor(energies, rng, 0.5)
    log_mel = np.log(np.maximum(energies, 1))
    bands = np.zeros(F, bool)
    for _ in range(2):
        width = rng.integers(0, 9)
        f = rng.integers(0, F - width + 1)
        bands[f : f + width] = True
    log_mel[:, bands] = MEAN_LOG_MEL[bands]
    expected = to_rows(log_mel)
    for _ in range(2):
        width = rng.integers(0, int(0.25 * T) + 1)
        t = rng.integers(0, T - width + 1)
        expected[t : t + width] = 0
    assert bands.any() and not bands.all()
    assert np.abs(found - expected).max() < ROUNDING / NORMALISER.std.min()


# --- what is hidden -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_masks_obey_the_policy(seed):
    features, lengths = batch(seed, B=1)
    T = int(lengths[0]) if seed % 2 else 37
    features = np.resize(features, (T, F))
    masked = spec_augment(features, [T], [generator(seed)], MASKS, NORMALISER)
    before, after = to_log_mel(features), to_log_mel(masked)
    hidden = np.abs(after - MEAN_LOG_MEL) < ROUNDING
    assert np.abs(after - before)[~hidden].max(initial=0) < ROUNDING  # what is not hidden is unchanged
    rows = (masked == 0).all(axis=1)  # the mean of everything is 0 exactly
    chance = np.abs(before - MEAN_LOG_MEL) < 2 * ROUNDING
    columns = hidden[~rows].all(axis=0) if not rows.all() else np.zeros(F, bool)
    if T > 1:
        assert np.array_equal(hidden & ~chance, (rows[:, None] | columns[None, :]) & ~chance)
    widest = min(10, int(0.25 * T))
    assert rows.sum() <= 2 * widest and len(runs(rows)) <= 2
    assert columns.sum() <= 16 and len(runs(columns)) <= 2


def test_widths_and_places_are_uniform():
    policy = dataclasses.replace(OFF, time_masks=1, max_time=4, max_time_fraction=1.0)
    widths, starts = np.zeros(5), np.zeros(10)
    for seed in range(4000):
        rows = spec_augment(np.ones((10, 2)), [10], [generator(seed)], policy, NORMALISER)[:, 0] == 0
        widths[rows.sum()] += 1
        if rows.sum() == 1:
            starts[np.flatnonzero(rows)[0]] += 1
    # 4000 / 5 = 800 each, deviation sqrt(800 * 0.8) = 25; 800 / 10 = 80 each, deviation 8.5: five of them.
    assert np.abs(widths - 800).max() < 130
    assert np.abs(starts - widths[1] / 10).max() < 45


def test_bands_are_hidden_as_the_policy_says():
    """Of 5 channels up to 3; a hidden one becomes the mean of that channel."""
    policy = dataclasses.replace(OFF, freq_masks=1, max_freq=3)
    mean, seen = np.arange(5.0), set()
    for seed in range(200):
        masked = np.full((7, 5), 9.0)
        mask_frequency(masked, generator(seed), policy, mean)
        columns = (masked != 9).any(axis=0)
        assert np.array_equal(masked, np.where(columns, mean, 9.0) * np.ones((7, 1))) and len(runs(columns)) <= 1
        seen.add(tuple(np.flatnonzero(columns)))
    expected = {()} | {tuple(range(f, f + w)) for w in (1, 2, 3) for f in range(5 - w + 1)}
    assert seen == expected


# --- the mel axis ---------------------------------------------------------------------------------


@pytest.mark.parametrize("factor, moved", [(1.2, 12), (0.8, 8), (1.0, 10), (2.0, 20), (1.05, 10.5)])
def test_a_tone_moves_to_its_mel_times_the_factor(factor, moved):
    """Counted from 1, channel m is centred at m steps from mel 0.  Half a step: two channels share the tone."""
    tone = np.zeros((2, F))
    tone[:, 10 - 1] = 1
    expected = [max(0, 1 - abs(m / factor - 10)) for m in range(1, F + 1)]
    warped = warp_mel(tone, factor)
    assert np.abs(warped - expected).max() < 1e-12
    assert abs(np.argmax(warped[0]) + 1 - moved) <= 0.5


@pytest.mark.parametrize("factor", [0.5, 0.83, 1.0, 1.17, 3.0])
@pytest.mark.parametrize("T", [1, 5])
def test_the_warp_is_linear_interpolation_that_ends_as_the_spectrum_does(T, factor):
    log_mel = np.random.default_rng(T).standard_normal((T, F))
    warped = warp_mel(log_mel, factor)
    for t in range(T):
        expected = np.interp(np.arange(1, F + 1) / factor, np.arange(1, F + 1), log_mel[t])  # constant at both ends
        assert np.abs(warped[t] - expected).max() < 1e-12
    if factor == 1:
        assert np.array_equal(warped, log_mel)


def test_the_axis_is_stretched_by_up_to_the_setting_either_way():
    """A ramp shows the factor: channel m holds m / factor."""
    policy = dataclasses.replace(OFF, max_mel_warp=0.1)
    ramp = np.arange(1.0, F + 1)[None]
    factors = [20 / augment_spectrum(ramp, generator(seed), policy, MEAN_LOG_MEL)[0, 19] for seed in range(300)]
    assert 0.9 <= min(factors) < 0.91 and 1.09 < max(factors) <= 1.1
    assert abs(np.mean(factors) - 1) < 0.015  # 0.1 / sqrt(3 x 300) = 0.0033: four of them and a half


def test_a_channel_is_a_few_cosines_of_at_most_so_many_decibels():
    peaks = []
    for seed in range(300):
        decibels = 10 * np.log10(smooth_curve(generator(seed), 12.0))
        peaks.append(np.abs(decibels).max())
        assert np.abs((COSINES @ decibels)[specaugment.SMOOTH :]).max() < 1e-4  # its higher cepstra are 0
    assert 0 < min(peaks) < 0.5 and 11.5 < max(peaks) < 12.001
    assert abs(np.mean(peaks) - 6) < 1  # uniform; 12 / sqrt(12 x 300) = 0.2: five of them


def test_a_channel_adds_the_same_curve_to_every_frame_and_stops_at_the_floor():
    policy = dataclasses.replace(OFF, max_channel_db=20.0)
    log_mel = np.random.default_rng(0).uniform(0, 20, (9, F))
    for seed in range(20):
        found = augment_spectrum(log_mel, generator(seed), policy, MEAN_LOG_MEL)
        curve = np.log(smooth_curve(generator(seed), 20.0))
        for t in range(9):
            for m in range(F):
                assert abs(found[t, m] - max(log_mel[t, m] + curve[m], 0)) < 1e-5


@pytest.mark.parametrize("T", [1, 8])
def test_the_floor_adds_in_power(T):
    policy = dataclasses.replace(OFF, max_noise=0.3)
    log_mel = np.random.default_rng(T).uniform(3, 20, (T, F))
    for seed in range(20):
        found = augment_spectrum(log_mel, generator(seed), policy, MEAN_LOG_MEL)
        noise = noise_floor(np.exp(log_mel), generator(seed), 0.3)
        assert noise.shape == (T, F) and (noise > 0).all()
        assert np.abs(found - np.logaddexp(log_mel, np.log(noise))).max() < 1e-9


def test_the_noise_is_as_strong_as_the_setting_says_and_steady():
    """Levels are uniform in dB, from 30 dB below the setting up to it, whatever the utterance's own level is."""
    rng, shares = np.random.default_rng(0), []
    energies = np.exp(rng.uniform(0, 20, (2000, F)))
    for seed in range(200):
        noise = noise_floor(energies, generator(seed), 0.1)
        shares.append(10 * np.log10(noise.mean() / energies.mean()))
        louder = noise_floor(100 * energies, generator(seed), 0.1)
        assert np.abs(louder / (100 * noise) - 1).max() < 1e-9
        # The spectrum stays: two halves of 1000 frames, deviation sqrt(2 / 1000) = 4.5 % where one draw is averaged.
        assert np.abs(noise[:1000].mean(axis=0) / noise[1000:].mean(axis=0) - 1).max() < 0.25
        colour = 10 * np.log10(noise.mean(axis=0) / energies.mean(axis=0))
        assert np.ptp(colour) < 2 * specaugment.COLOUR_DB + 1
    # The mean of 2000 frames is off by up to 10 %, 0.4 dB.
    assert -40.4 < min(shares) < -38.5 and -11.5 < max(shares) < -9.6
    assert abs(np.mean(shares) + 25) < 3  # 30 / sqrt(12 x 200) = 0.6: five of them


def test_the_noise_fluctuates_as_white_noise_does_in_the_filters_of_the_features():
    """mean^2 / variance of a channel's energy over time, on both sides, within a half."""
    energies = mel_energies(emphasise(0.1 * np.random.default_rng(0).standard_normal(16000 * 20)))
    noise = noise_floor(energies, generator(0), 1.0)

    def independent(energies):
        return energies.mean(axis=0) ** 2 / energies.var(axis=0)

    assert np.abs(np.log(independent(noise) / independent(energies))).max() < np.log(1.5)


# --- time -----------------------------------------------------------------------------------------


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
