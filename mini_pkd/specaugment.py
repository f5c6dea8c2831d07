"""Augmentation: SpecAugment (Park et al., 2019) hides random stretches of the input.

A model that cannot count on any single stretch learns to use all of them.  For one utterance of T rows and F features,
with the policy's numbers:

    time warp:          a random row moves by up to max_warp_fraction * T, so that one side becomes faster, one slower
    time_masks times:   width w ~ uniform{0 .. min(max_time, floor(max_time_fraction * T))}
                        start t ~ uniform{0 .. T - w}       rows t .. t+w-1 become 0
    freq_masks times:   width w ~ uniform{0 .. min(max_freq, F)}
                        start f ~ uniform{0 .. F - w}       columns f .. f+w-1 become 0

The features are normalised, so 0 is their mean: the least surprising value.

Our features are MFCCs, not mel energies.  A "frequency" mask therefore does not hide a band of frequencies but one of
*cepstra*: loudness and tilt, say, or the finest ripples of the spectrum.  It still keeps the model from leaning on a
few of them.

Every utterance draws from a random generator of its own (seeds.py): in training its masks depend on
(seed, model, epoch, utterance) alone, not on the step, the rest of its batch or what was drawn before.
"""

from dataclasses import dataclass

import numpy as np

from . import UserError


@dataclass(frozen=True)
class SpecAugmentPolicy:
    """How much is hidden: by default up to 2 x 40 rows (0.4 s each, and at most a fifth of the utterance each)
    and up to 2 x 8 of 40 cepstra.  All zeros switches it off."""

    time_masks: int = 2
    max_time: int = 40
    max_time_fraction: float = 0.2
    freq_masks: int = 2
    max_freq: int = 8
    max_warp_fraction: float = 0.0

    def __post_init__(self):
        for name in ("time_masks", "max_time", "freq_masks", "max_freq"):
            value = getattr(self, name)
            if int(value) != value or value < 0:
                raise UserError(f"SpecAugment's {name} is {value!r}; give a whole number, 0 to switch that mask off.")
        for name in ("max_time_fraction", "max_warp_fraction"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UserError(f"SpecAugment's {name} is {value!r}; give a fraction of the utterance, 0 to 1.")


def time_warp(rows, rng, max_fraction):
    """A random row moves by up to `max_fraction` of the utterance: (T, F) -> (T, F), interpolated linearly.

    The ends stay where they are, and both sides keep at least half their length.
    """
    T = len(rows)
    pivot = rng.uniform(0.25, 0.75) * (T - 1)
    moved = pivot + rng.uniform(-1, 1) * min(max_fraction * T, 0.5 * min(pivot, T - 1 - pivot))
    source = np.interp(np.arange(T), [0, moved, T - 1], [0, pivot, T - 1])  # where each new row comes from
    left = np.minimum(source.astype(np.int64), T - 2)
    weight = (source - left).astype(rows.dtype)[:, None]
    return rows[left] * (1 - weight) + rows[left + 1] * weight


def mask_time(rows, rng, policy):
    """Hide stretches of rows (T, F), in place."""
    T = len(rows)
    widest = min(policy.max_time, int(policy.max_time_fraction * T))
    for _ in range(policy.time_masks):
        width = int(rng.integers(0, widest + 1))
        t = int(rng.integers(0, T - width + 1))
        rows[t : t + width] = 0


def mask_frequency(rows, rng, policy):
    """Hide bands of columns of rows (T, F), in place."""
    F = rows.shape[1]
    widest = min(policy.max_freq, F)
    for _ in range(policy.freq_masks):
        width = int(rng.integers(0, widest + 1))
        f = int(rng.integers(0, F - width + 1))
        rows[:, f : f + width] = 0


def spec_augment(features, lengths, rngs, policy):
    """Ragged (sum of T_b, F) features -> a masked copy; `features` itself stays as it is.

    lengths: (B,), rngs: B random generators, one per utterance.
    """
    lengths = np.asarray(lengths)
    if lengths.sum() != len(features) or len(rngs) != len(lengths):
        raise ValueError(f"{len(features)} rows, lengths {lengths.tolist()} and {len(rngs)} generators must agree")
    masked = np.array(features)  # (sum T, F)
    start = 0
    for T, rng in zip(lengths.tolist(), rngs, strict=True):
        rows = masked[start : start + T]  # (T, F), a view
        start += T
        if policy.max_warp_fraction and T > 2:
            rows[:] = time_warp(rows, rng, policy.max_warp_fraction)
        mask_time(rows, rng, policy)
        mask_frequency(rows, rng, policy)
    return masked  # (sum T, F)


def demo():
    """Two utterances of ones, 24 and 40 rows of 12; masked values are shown as dots."""
    from .seeds import generator

    policy = SpecAugmentPolicy(time_masks=2, max_time=10, max_time_fraction=0.3, freq_masks=1, max_freq=4)
    lengths = [24, 40]
    rngs = [generator(0, "demo", name) for name in ("one", "two")]
    masked = spec_augment(np.ones((64, 12), dtype=np.float32), lengths, rngs, policy)
    for T, rows in zip(lengths, np.split(masked, [24]), strict=True):
        print(f"{T} rows (left to right) x 12 cepstra (top to bottom), {np.mean(rows == 0):.0%} hidden:")
        print("\n".join("  " + "".join("." if x == 0 else "#" for x in column) for column in rows.T))


if __name__ == "__main__":
    demo()
