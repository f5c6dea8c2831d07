"""Augmentation: in every epoch an utterance sounds as if another speaker had said it to another microphone.

Our features are normalised MFCCs, all 40 of 40: a rotation (an orthonormal DCT) of 40 log mel energies.  Nothing is
lost in it, so what belongs on the mel axis is done there.  In this order:

    time warp      a random row moves by up to max_warp_fraction * T: one side becomes faster, the other slower
      inverse DCT  MFCCs * std + mean -> log mel energies
    mel warp       the mel axis is stretched by a factor of 1 +- max_mel_warp: a shorter or longer vocal tract
    channel        energies times a smooth random curve of up to +- max_channel_db: microphone, room, distance
    noise floor    energies plus noise of up to max_noise times the utterance's power (0.1: 10 dB below it)
    frequency      freq_masks times: width w ~ uniform{0 .. min(max_freq, F)}
      masks                          start f ~ uniform{0 .. F - w}     channels f .. f+w-1 are hidden
      DCT          and (MFCCs - mean) / std
    time masks     time_masks times: width w ~ uniform{0 .. min(max_time, floor(max_time_fraction * T))}
                                     start t ~ uniform{0 .. T - w}     rows t .. t+w-1 are hidden

It is the order in which a sound meets them: first the speaker, then the way to the microphone, then noise, which has no
throat to be warped.  The masks come last, because noise would fill them.  They and the time warp are SpecAugment's
(Park et al., 2019): a model that cannot count on any single stretch or band learns to use all of them.

A hidden energy becomes its channel's mean log energy over the training set, the least surprising value for somebody who
knows nothing else.  The DCT is linear, so a row that is hidden altogether is the mean MFCC: 0 once it is normalised.

Every utterance draws from a random generator of its own (seeds.py): in training what is drawn depends on
(seed, model, epoch, utterance) alone, not on the step, the rest of its batch or what was drawn before.
Left out: the throat really scales frequencies, not mels; the echo of a room.
"""

from dataclasses import dataclass

import numpy as np
from scipy.fft import dct, idct

from . import UserError
from .features import ENERGY_FLOOR, NUM_FEATURES

SMOOTH = 4  # cosines in a smooth curve: loudness, tilt, a bow, a ripple
COLOUR_DB = 20.0  # how far the noise's spectrum strays from the utterance's
NOISE_RANGE = 1000.0  # the weakest noise is so much weaker than the strongest: 30 dB
INDEPENDENT = np.geomspace(1, 10, NUM_FEATURES)  # draws of white noise that a filter averages, from narrow to wide


@dataclass(frozen=True)
class SpecAugmentPolicy:
    """How much of each: by default up to 2 x 40 rows (0.4 s each, and at most a fifth of the utterance each) and
    up to 2 x 8 of 40 mel channels are hidden, and the rest is off.  All zeros switches everything off."""

    time_masks: int = 2
    max_time: int = 40
    max_time_fraction: float = 0.2
    freq_masks: int = 2
    max_freq: int = 8
    max_warp_fraction: float = 0.0
    max_mel_warp: float = 0.0
    max_channel_db: float = 0.0
    max_noise: float = 0.0

    def __post_init__(self):
        for name in ("time_masks", "max_time", "freq_masks", "max_freq"):
            value = getattr(self, name)
            if int(value) != value or value < 0:
                raise UserError(f"SpecAugment's {name} is {value!r}; give a whole number, 0 to switch that mask off.")
        for name in ("max_time_fraction", "max_warp_fraction", "max_mel_warp", "max_channel_db", "max_noise"):
            value, most = getattr(self, name), 40 if name == "max_channel_db" else 1
            if not 0.0 <= value <= most:
                raise UserError(f"SpecAugment's {name} is {value!r}; give a number from 0 (off) to {most}.")


# --- in time --------------------------------------------------------------------------------------


def interpolate(rows, source):
    """Read rows (T, F) at the places source (N,), numbers from 0 to T - 1, on the line between two rows -> (N, F)."""
    left = np.minimum(source.astype(np.int64), len(rows) - 2)
    weight = (source - left).astype(rows.dtype)[:, None]
    return rows[left] * (1 - weight) + rows[left + 1] * weight


def time_warp(rows, rng, max_fraction):
    """A random row moves by up to `max_fraction` of the utterance: (T, F) -> (T, F), interpolated linearly.

    The ends stay where they are, and both sides keep at least half their length.
    """
    T = len(rows)
    pivot = rng.uniform(0.25, 0.75) * (T - 1)
    moved = pivot + rng.uniform(-1, 1) * min(max_fraction * T, 0.5 * min(pivot, T - 1 - pivot))
    source = np.interp(np.arange(T), [0, moved, T - 1], [0, pivot, T - 1])  # where each new row comes from
    return interpolate(rows, source)


def mask_time(rows, rng, policy):
    """Hide stretches of normalised rows (T, F), in place."""
    T = len(rows)
    widest = min(policy.max_time, int(policy.max_time_fraction * T))
    for _ in range(policy.time_masks):
        width = int(rng.integers(0, widest + 1))
        t = int(rng.integers(0, T - width + 1))
        rows[t : t + width] = 0


# --- on the mel axis ------------------------------------------------------------------------------


def warp_mel(log_mel, factor):
    """What was at mel x moves to mel x * factor: (T, F) -> (T, F).

    Channel m is centred (m + 1) steps from mel 0.  Beyond the last channel the spectrum goes on as it ends.
    """
    F = log_mel.shape[1]
    source = np.clip(np.arange(1, F + 1) / factor - 1, 0, F - 1)  # where each new channel comes from
    return interpolate(log_mel.T, source).T


def smooth_curve(rng, max_db):
    """Random factors (F,) for mel energies, in dB a sum of a few cosines, the largest of them up to +- max_db."""
    cepstra = np.zeros(NUM_FEATURES, dtype=np.float32)
    cepstra[:SMOOTH] = rng.uniform(-1, 1, SMOOTH)  # a smooth spectrum is one that has only the first cepstra
    curve = idct(cepstra, norm="ortho")
    return 10 ** (rng.uniform(0, max_db / 10) * curve / np.abs(curve).max())


def noise_floor(energies, rng, max_noise):
    """The energies (T, F) of a steady noise, on average max_noise times `energies` (T, F) or up to 30 dB less.

    Its spectrum is the utterance's mean times a smooth curve; like all noise it fluctuates (a Gamma distribution).
    """
    spectrum = energies.mean(axis=0) * smooth_curve(rng, COLOUR_DB)  # (F,)
    power = max_noise * NOISE_RANGE ** -rng.uniform() * energies.mean()
    fluctuation = rng.standard_gamma(INDEPENDENT, energies.shape) / INDEPENDENT  # (T, F), 1 on average
    return spectrum * (power / spectrum.mean()) * fluctuation


def mask_frequency(log_mel, rng, policy, mean):
    """Hide bands of channels of log_mel (T, F), in place: they become the training set's mean (F,)."""
    F = log_mel.shape[1]
    for _ in range(policy.freq_masks):
        width = int(rng.integers(0, min(policy.max_freq, F) + 1))
        f = int(rng.integers(0, F - width + 1))
        log_mel[:, f : f + width] = mean[f : f + width]


def augment_spectrum(log_mel, rng, policy, mean):
    """What happens on the mel axis: (T, F) log mel energies -> (T, F); mean (F,) is the training set's."""
    if policy.max_mel_warp:
        log_mel = warp_mel(log_mel, 1 + rng.uniform(-1, 1) * policy.max_mel_warp)
    energies = np.exp(log_mel)
    if policy.max_channel_db:
        energies *= smooth_curve(rng, policy.max_channel_db)
    if policy.max_noise:
        energies += noise_floor(energies, rng, policy.max_noise)
    log_mel = np.log(np.maximum(energies, ENERGY_FLOOR))  # as features.py would have given
    mask_frequency(log_mel, rng, policy, mean)
    return log_mel


# --- a batch --------------------------------------------------------------------------------------


def spec_augment(features, lengths, rngs, policy, normaliser):
    """Ragged (sum of T_b, F) normalised features -> an augmented copy; `features` itself stays as it is.

    lengths: (B,), rngs: B random generators, one per utterance; normaliser: the one that the features went through.
    """
    lengths = np.asarray(lengths)
    if lengths.sum() != len(features) or len(rngs) != len(lengths):
        raise ValueError(f"{len(features)} rows, lengths {lengths.tolist()} and {len(rngs)} generators must agree")
    on_mel_axis = policy.freq_masks or policy.max_mel_warp or policy.max_channel_db or policy.max_noise
    augmented = np.array(features)  # (sum T, F)
    start = 0
    for T, rng in zip(lengths.tolist(), rngs, strict=True):
        rows = augmented[start : start + T]  # (T, F), a view
        start += T
        if policy.max_warp_fraction and T > 2:
            rows[:] = time_warp(rows, rng, policy.max_warp_fraction)
        if on_mel_axis:  # rotated utterance by utterance, or rounding would depend on the rest of the batch
            log_mel = idct(rows * normaliser.std + normaliser.mean, norm="ortho")
            log_mel = augment_spectrum(log_mel, rng, policy, idct(normaliser.mean, norm="ortho"))
            rows[:] = normaliser(dct(log_mel, norm="ortho"))
        mask_time(rows, rng, policy)
    return augmented  # (sum T, F)


def demo():
    """One frame of an invented vowel, formants in channels 10, 20 and 30 of 40; then 60 frames in time."""
    from .seeds import generator

    rng, channel = generator(0, "demo", 7), np.arange(1, NUM_FEATURES + 1)
    vowel = 2 + sum(6 * np.exp(-(((channel - m) / 2) ** 2)) for m in (10, 20, 30))[None]  # (1, F)
    energies, curve, hidden = np.exp(vowel), smooth_curve(rng, 15.0), vowel.copy()
    noise = noise_floor(energies, rng, 1.0)
    policy = SpecAugmentPolicy(time_masks=2, max_time=10, freq_masks=1, max_freq=12)
    mask_frequency(hidden, rng, policy, np.full(NUM_FEATURES, 4.0))
    print("Log energies of 40 mel channels, rounded down to a digit each:")
    for name, log_mel in {
        "a vowel: 8.0 in channels 10, 20, 30": vowel,
        "mel axis x 1.1: 11, 22, 33": warp_mel(vowel, 1.1),
        f"a channel, {10 * np.log10(curve[19]):+.1f} dB in 20: 8.0 {np.log(curve[19]):+.1f}": np.log(energies * curve),
        f"a noise of {noise.mean() / energies.mean():.2f} times its power": np.log(noise),
        "vowel and noise: ln 2 more where equal": np.log(energies + noise),
        "a hidden band becomes the mean, 4": hidden,
    }.items():
        print(f"  {name:40s}{''.join(str(max(0, int(x))) for x in log_mel[0])}")
    rows = np.ones((60, NUM_FEATURES))
    mask_time(rows, rng, policy)
    print(f"60 frames, {np.mean(rows == 0):.0%} hidden:", "".join(".#"[int(x)] for x in rows[:, 0]))


if __name__ == "__main__":
    demo()
