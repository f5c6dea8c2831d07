# %% [markdown]
# # 03 Sound: from a waveform to forty numbers every 10 ms
#
# A microphone gives 16,000 numbers a second. A word lasts about half a second, and most of its 8,000 numbers only say
# where in its swing the air happens to be. This notebook follows one utterance through the four steps that leave what
# matters: 40 numbers, a hundred times a second.
#
# You will be able to say what each step throws away, and to do it on a stream without changing a single row.

# %%
import numpy as np
from scipy.fft import idct

from mini_pkd.features import (
    PREEMPHASIS,
    Normaliser,
    StreamingMFCC,
    cepstra,
    emphasise,
    mel_energies,
    mfcc,
    num_frames,
    stages,
)
from mini_pkd.seeds import generator
from mini_pkd.specaugment import SpecAugmentPolicy, spec_augment
from tutorial import draw, utterance
from tutorial.exercise import check

spoken = utterance.load()
print(f"{spoken.text}, {len(spoken.wave)} samples, {spoken.seconds:.2f} s")
draw.hear(spoken.path)

# %% [markdown]
# ## Four steps in one picture
#
# **Question.** What does the network see of this?
#
# $$
# \begin{aligned}
# y_n &= x_n - 0.97\,x_{n-1} \\
# p_t(f) &= \tfrac{1}{512}\,|\mathrm{FFT}(\text{400 samples of } y \text{ at } t, \text{ faded in and out})|^2 \\
# e_t &= \text{filters} \cdot p_t \\
# c_t &= \mathrm{DCT}(\ln e_t)
# \end{aligned}
# $$
#
# - *Pre-emphasis* lifts high frequencies, which speech has less of.
# - A *spectrum* of 25 ms says how much of each frequency there is. The 400 samples are faded in and out (a Hamming
#   window) and filled up with zeros to 512, a power of 2. It forgets the phase, of which we hear little.
# - *Mel filters* add up neighbours, few at the bottom and many at the top, as the ear does.
# - The *cepstrum* multiplies the 40 logarithms by the DCT, a fixed orthogonal matrix, so nothing is lost. Its row $k$
#   is a cosine with $k$ half waves. So coefficient 0 is loudness, 1 is tilt (low against high), and later ones say how
#   much there is of finer ripples.
#
# `features.stages` returns all four, and `mfcc` only the last, which is what training uses.

# %%
found = stages(spoken.wave)
assert np.array_equal(found.cepstra, mfcc(spoken.wave))
draw.show(
    draw.sound(spoken.wave, found),
    "One utterance, four times: the wave, its spectrum, 40 mel bands, 40 cepstra. In the spectrum, vowels are bright "
    "at the bottom and hisses (S, F, T) at the top; below 1 kHz thin horizontal stripes show the multiples of the "
    "voice's pitch. The mel filters melt them into broad humps, which are what tells vowels apart; in the lowest "
    "bands, which are narrow, some stripes survive. Cepstrum 0 is off the scale of colours.",
)

# %% [markdown]
# **Why rotate at all**, if a rotation loses nothing? Because neighbouring bands rise and fall together, and cepstra do
# so less, which older models needed: they took each number as independent of the others. A network could learn without;
# the paper uses cepstra, and so do we. Here is the mean absolute correlation between different columns.

# %%
correlations = {}
for name, rows in (("mel bands", found.log_mel), ("cepstra", found.cepstra)):
    c = np.corrcoef(rows.T)
    correlations[name] = np.abs(c[~np.eye(len(c), dtype=bool)]).mean()
    print(f"{name:10s} {correlations[name]:.2f}")
assert correlations["cepstra"] < 0.7 * correlations["mel bands"]

# %% [markdown]
# ## How many rows?
#
# A row needs 400 samples, and the next begins 160 later. The last one is filled up with zeros.
#
# **Exercise 1.** How many rows does our utterance make? Write the formula with `samples`, not the number: 400 samples
# make one row, 401 make two.

# %%
samples = len(spoken.wave)
# SOLUTION: frames = ...
frames = 1 + -(-(samples - 400) // 160)  # -(-a // b) rounds up
# END SOLUTION
check(frames, num_frames(samples), "One row for the first 400 samples, then one for every 160 begun: round up.", 0)

# %% [markdown]
# ## A stream gives the same rows
#
# **Question.** Audio arrives in pieces. Two things reach from one piece into the next: a window that has begun, and the
# one sample before, which pre-emphasis subtracts. `StreamingMFCC` keeps both.

# %%
stream, whole = StreamingMFCC(), mfcc(spoken.wave)
pieces = [stream.push(spoken.wave[i : i + 777]) for i in range(0, len(spoken.wave), 777)] + [stream.flush()]
streamed = np.concatenate(pieces)
print(f"{len(streamed)} rows, largest difference {np.abs(streamed - whole).max():.1e}")
assert streamed.shape == whole.shape and np.abs(streamed - whole).max() < 1e-3

# %% [markdown]
# **Break it.** Restart the pre-emphasis with every piece, as happens when a feature extractor is called on pieces. The
# sample before is then 0, and the first sample of each piece becomes a click.

# %%
restarted = np.concatenate([emphasise(spoken.wave[i : i + 1600]) for i in range(0, len(spoken.wave), 1600)])
clicks = np.abs(restarted - emphasise(spoken.wave))
print(f"{np.count_nonzero(clicks > 1e-9)} samples of {len(clicks)} are wrong")

# %%
neighbours = np.median(np.abs(np.diff(whole, axis=0)).max(axis=1))
wrong = np.abs(cepstra(mel_energies(restarted)) - whole).max(axis=1)
draw.show(
    draw.rows_apart({"kept": np.abs(streamed - whole).max(axis=1), "restarted every 0.1 s": wrong}),
    "Largest difference of a row from that of the whole utterance. With the sample before kept, none. Restarted every "
    "0.1 s, the rows around some cuts are wrong by more than one row usually differs from the next.",
)
print(f"wrong by up to {wrong.max():.1f}, where a row usually differs from the next by {neighbours:.1f}")
assert wrong.max() > neighbours and np.count_nonzero(clicks > 1e-9) < 0.001 * len(clicks)

# %% [markdown]
# One sample in 1,600 was wrong, and it is enough. "The stream gives another text than the file" is the most repeated
# complaint about speech toolkits; this is one way to earn it.
#
# **Exercise 2.** Write pre-emphasis for a piece, so that pieces joined are the whole. `previous` is the last sample of
# the piece before, and `PREEMPHASIS` is 0.97.


# %%
def piecewise(x, previous):
    # SOLUTION: return ...
    return x - PREEMPHASIS * np.concatenate([[previous], x[:-1]])
    # END SOLUTION


def same_as_whole(function):
    x = spoken.wave[6000:6500].astype(float)
    cut = [function(x[:200], 0.0), function(x[200:], x[199])]
    return np.allclose(np.concatenate(cut) * 32768, emphasise(x))  # emphasise counts in 16 bit


check(piecewise, same_as_whole, "Look at the first sample of each piece: which number stands before it?")

# %% [markdown]
# ## Silence
#
# **Break it.** Digital silence has energy 0, and ln 0 is minus infinity. The floor of 1 (in units of a 16 bit sample,
# squared) makes it a row of zeros. Without a floor, or with the tiny one that many libraries put there, a pause in a
# file becomes the most extreme row of all, 36 below zero, where speech lies between 5 and 20.

# %%
silence = np.maximum(mel_energies(emphasise(np.zeros(1600))), np.finfo(float).eps)
print(f"with the floor: {np.abs(mfcc(np.zeros(1600))).max():.1f}   without: {np.log(silence).min():.1f}")
assert np.abs(mfcc(np.zeros(1600))).max() == 0 and np.log(silence).min() < -30

# %% [markdown]
# ## One scale for all, then masks
#
# The normaliser subtracts a mean and divides by a deviation, one pair for each coefficient, measured once on the
# training set. Nothing in it depends on the rest of the utterance, so it streams.
#
# In training, *SpecAugment* hides random stretches of time and of the mel axis, other ones in every *epoch*, as a pass
# over the training set is called. (For the mel axis the rows are rotated back, and after hiding rotated again.) A model
# that cannot count on any single stretch learns to use all of them. What is hidden becomes its mean over the training
# set, the least surprising thing to put there; a row that is hidden whole is 0 after the normaliser.

# %%
some = utterance.part("train")[::40]  # for speed; training takes all of them
normaliser = Normaliser.estimate([mfcc(utterance.hear(u).wave) for u in some])
rows = normaliser(whole)
augmented = spec_augment(rows, [len(rows)], [generator(7, "tutorial")], SpecAugmentPolicy(), normaliser)
above_mean = [idct(r * normaliser.std, norm="ortho") for r in (rows, augmented)]  # log mel energies again
share = np.mean(np.abs(above_mean[1]) < 1e-4)
draw.show(
    draw.masks(*above_mean),
    f"Log mel energies above their mean, and what training sees of them in one epoch: {share:.0%} are hidden. Vertical "
    "bands hide time, horizontal ones hide frequencies. A nat is a unit of the natural logarithm: 1 nat is a factor e.",
)
assert 0.05 < share < 0.8

# %% [markdown]
# **Exercise 3.** The default policy hides at most two stretches of 40 rows, each at most a fifth of the utterance, and
# two bands of 8 of the 40 mel channels. What share of an utterance of 400 rows can it hide at most?

# %%
# SOLUTION: most = ...
most = 1 - (1 - 2 * 40 / 400) * (1 - 2 * 8 / 40)  # what is left are rows that are seen, times channels that are
# END SOLUTION


def hidden_at_most(share):
    seen = np.ones((400, 40))
    seen[:80] = seen[:, :16] = 0
    return abs(share - (1 - seen.mean())) < 1e-9


check(most, hidden_at_most, "Count what is left, not what is hidden: the bands cross, and a crossing counts once.")

# %% [markdown]
# ## The number
#
# How far apart are a stream and a file? Pieces of five sizes, from 10 ms to a second, and the largest difference of any
# number in any row.

# %%
largest = 0.0
for size in (160, 400, 1_000, 1_601, 16_000):
    stream = StreamingMFCC()
    rows = [stream.push(spoken.wave[i : i + size]) for i in range(0, len(spoken.wave), size)] + [stream.flush()]
    largest = max(largest, np.abs(np.concatenate(rows) - whole).max())
print(f"streamed against whole: largest difference {largest:.1e}, where values reach {np.abs(whole).max():.0f}")
assert largest < 1e-3

# %% [markdown]
# **Next:** [04 words](04_words.ipynb), the other end of the model: what should come out.
