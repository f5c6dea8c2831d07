"""Assignment 2: what goes in and what comes out: features from audio, and subword units from text."""

from itertools import pairwise

import numpy as np

from .task import CORE, Assignment, Mutant, Output, Task

CONVENTIONS = {
    "axes": {
        "frames first": {
            "T, W": "T, W",
            "T, F": "T, F",
            "k, W": "k, W",
            "row": "row",
            "frames by rows": "",
            "frames as handed out": "",
            "frames": "frames",
            "log_mel": "log_mel",
            "coefficients": "coefficients",
            "as rows": "",
            "time axis": "0",
        },
        "frames last": {
            "T, W": "W, T",
            "T, F": "F, T",
            "k, W": "W, k",
            "row": "column",
            "frames by rows": "frames = frames.T  # (T, W)",
            "frames as handed out": "frames = frames.T  # (W, T)",
            "frames": "frames.T",
            "log_mel": "log_mel.T",
            "coefficients": "coefficients.T",
            "as rows": ".T",
            "time axis": "1",
        },
    },
    "end": {
        "zeros": {
            "filled with": "zeros",
            "fill the rest": "",
            "fill the last": "",
            "filler": "0.0",
        },
        "last value": {
            "filled with": "the last emphasised sample, repeated",
            "fill the rest": "frames[t, len(piece) :] = emphasised[-1]",
            "fill the last": "frames[0, len(left) :] = left[-1]",
            "filler": "0.06",
        },
    },
    "window": {
        "Hamming": {
            "window": "hamming",
            "Window": "Hamming",
            "formula": r"w_n = 0.54 - 0.46 \cos\frac{2 \pi n}{W - 1}",
            "of the first sample": "16.0",
        },
        "Hann": {
            "window": "hanning",
            "Window": "Hann",
            "formula": r"w_n = 0.5 - 0.5 \cos\frac{2 \pi n}{W - 1}",
            "of the first sample": "1.0",
        },
    },
    "blank": {
        "first": {"first id": "1", "ids": "0 is blank, so units are counted from 1"},
        "last": {"first id": "0", "ids": "units are counted from 0, and blank comes after all of them"},
    },
    "units": {
        "marker in front": {
            "marked word": "MARKER + word",
            "where the marker is": "in front of",
            "THE": "▁ T H E",
            "TH": "▁ TH E",
            "best pair": "min(total, key=lambda pair: (-total[pair], pair))",
            "other best pair": "max(total, key=lambda pair: (total[pair], pair))",
            "winner": "smallest",
            "other winner": "largest",
            "second merge of ABAB": "[MARK, MARK + 1]",
            "second merge of AAA": "[MARK, MARK + 1]",
            "A and BC": "[MARK, A, BC]",
            "A B": "[MARK, A, MARK, B]",
            "AA A": "[MARK, AA, A]",
            "pair across words": "[C, MARK]",
            "C C": "[MARK, C, MARK, C]",
            "C, ▁": "C, ▁",
        },
        "marker at the end": {
            "marked word": "word + MARKER",
            "where the marker is": "behind",
            "THE": "T H E ▁",
            "TH": "TH E ▁",
            "best pair": "max(total, key=lambda pair: (total[pair], pair))",
            "other best pair": "min(total, key=lambda pair: (-total[pair], pair))",
            "winner": "largest",
            "other winner": "smallest",
            "second merge of ABAB": "[MARK + 1, MARK + 1]",
            "second merge of AAA": "[MARK + 1, A]",
            "A and BC": "[A, BC, MARK]",
            "A B": "[A, MARK, B, MARK]",
            "AA A": "[AA, A, MARK]",
            "pair across words": "[MARK, C]",
            "C C": "[C, MARK, C, MARK]",
            "C, ▁": "▁, C",
        },
    },
}

PREEMPHASIS = 0.97
MARKER = "▁"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# --- inputs ---------------------------------------------------------------------------------------------------------


def in_dialect(dialect, frames):
    """Frames, a row each, with the axes of the dialect; and back again."""
    return frames if dialect["axes"] == "frames first" else np.ascontiguousarray(frames.T)


def emphasise(samples):
    """y[n] = x[n] - 0.97 x[n - 1], as a convolution."""
    return np.convolve(samples, [1.0, -PREEMPHASIS])[: len(samples)] if len(samples) else np.zeros(0)


def cut(dialect, samples, window, shift):
    """All frames, a row each: fill up the signal first, then look at it through a sliding window."""
    y = emphasise(samples)
    if len(y) == 0:
        return np.zeros((0, window))
    length = window
    while length < len(y):
        length += shift
    padded = np.concatenate([y, np.full(length - len(y), 0.0 if dialect["end"] == "zeros" else y[-1])])
    return np.lib.stride_tricks.sliding_window_view(padded, window)[::shift]


def marked(dialect, word):
    return MARKER + word if dialect["units"] == "marker in front" else word + MARKER


def first_id(dialect):
    return 1 if dialect["blank"] == "first" else 0


def letters(rng, n):
    """n different letters, in order."""
    return sorted(LETTERS[k] for k in rng.choice(len(LETTERS), n, replace=False))


def random_words(rng, alphabet, n, longest=6):
    """{word: count} of up to n words; an alphabet of few letters has many repeats and ties."""
    words = {}
    for _ in range(n):
        word = "".join(rng.choice(list(alphabet), rng.integers(1, longest + 1)))
        words[word] = int(rng.integers(1, 6))
    return words


# --- 1 --------------------------------------------------------------------------------------------------------------


def framing_cases(rng, dialect, solution):
    def case(n, window, shift):
        return rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n), window, shift

    return {
        CORE: [case(50, 10, 4), case(53, 10, 4), case(31, 9, 5)],
        "no samples": [case(0, 5, 2)],
        "shorter than a window": [case(1, 6, 3), case(5, 6, 3)],
        "exactly one window": [case(8, 8, 3)],
        "windows without overlap": [case(30, 6, 6), case(32, 6, 6)],
        "25 ms every 10 ms": [case(n, 400, 160) for n in (560, 561, 4000)],
    }


def framing_oracle(dialect, samples, window, shift):
    from mini_pkd.features import SHIFT, WINDOW, num_frames

    frames = cut(dialect, samples, window, shift)
    assert (window, shift) != (WINDOW, SHIFT) or len(frames) == num_frames(len(samples))
    return in_dialect(dialect, frames), samples


FRAMING = Task(
    name="Framing",
    points=15,
    hours=1.0,
    function="frame_signal",
    outputs=(Output("frames", "float64", 2), Output("samples, afterwards,", "float64", 1)),
    tolerance=1e-9,
    drive="""
def drive(student, samples, window, shift):
    return student.frame_signal(samples, window, shift), samples
""",
    code='''
def frame_signal(samples, window, shift):
    """Emphasise a signal, then cut it into frames that overlap.

    samples  (n,) float64: audio, n >= 0; it stays as it was
    window   W: how many samples a frame has, 1 or more
    shift    how many samples lie between the beginnings of neighbouring frames; 1 <= shift <= window

    Returns («T, W») float64, a «row» for each frame, in order.  Every sample is in some frame, and T is as small as
    that allows: 0 without samples, 1 for up to W samples.  What the last frame lacks is filled with
    «filled with».
    """
    emphasised = samples.copy()
    emphasised[1:] -= PREEMPHASIS * samples[:-1]
    T = 1 + max(0, -(-(len(samples) - window) // shift)) if len(samples) else 0
    frames = np.zeros((T, window))
    for t in range(T):
        piece = emphasised[t * shift : t * shift + window]
        frames[t, : len(piece)] = piece
        «fill the rest»
    return «frames»
''',
    mutants=(
        Mutant(
            "floor",
            "as if samples that do not fill a whole frame were thrown away: round the number of frames up",
            [("-(-(len(samples) - window) // shift)", "(len(samples) - window) // shift")],
        ),
        Mutant(
            "last frame dropped",
            "as if the last frame were always dropped: n samples have one frame more than there are shifts",
            [("1 + max(", "max(")],
        ),
        Mutant(
            "emphasis per frame",
            "as if each frame were emphasised by itself: its first sample has a predecessor as well",
            [
                (
                    "        piece = emphasised[t * shift : t * shift + window]\n",
                    "        piece = samples[t * shift : t * shift + window].copy()\n"
                    "        piece[1:] = piece[1:] - PREEMPHASIS * piece[:-1]\n",
                )
            ],
        ),
        Mutant(
            "emphasis twice",
            "as if the sample before were taken after its own emphasis: it is the sample as it was recorded",
            [
                (
                    "    emphasised[1:] -= PREEMPHASIS * samples[:-1]\n",
                    "    for n in range(1, len(samples)):\n        emphasised[n] -= PREEMPHASIS * emphasised[n - 1]\n",
                )
            ],
        ),
        Mutant(
            "in place",
            "right, but written into the samples, which must stay as they were",
            [("emphasised = samples.copy()", "emphasised = samples")],
        ),
    ),
    cases=framing_cases,
    oracle=framing_oracle,
    handout=r"""
Speech has little energy at high frequencies. Pre-emphasis lifts them, over the whole signal at once (a
factor of 1.97 at 8000 Hz and of 0.03 at 0 Hz):

$$y_n = x_n - 0.97\, x_{n-1}, \qquad y_0 = x_0.$$

(0.97 is `PREEMPHASIS` in your file.) Then frame t holds $y_{tS}, \dots, y_{tS + W - 1}$, with W the window and S the
shift. No sample may be lost, so for $n \geq 1$

$$T = 1 + \max\Bigl(0, \Bigl\lceil \frac{n - W}{S} \Bigr\rceil\Bigr),$$

and what the last frame lacks is filled with **«filled with»**.
Without samples there are no frames: the result has the shape («T, W») with T = 0.
""",
    tests="""
def test_the_frames():
    frames = frame_signal(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 3, 2)
    # emphasised: 1, 2 - 0.97, 3 - 1.94, 4 - 2.91, 5 - 3.88
    assert np.allclose(frames«as rows», [[1, 1.03, 1.06], [1.06, 1.09, 1.12]], rtol=0, atol=1e-12)


def test_the_end_is_filled():
    frames = frame_signal(np.array([1.0, 1.0, 1.0, 1.03]), 3, 2)
    assert np.allclose(frames«as rows», [[1, 0.03, 0.03], [0.03, 0.06, «filler»]], rtol=0, atol=1e-12)


def test_how_many():
    for n, T in ((0, 0), (1, 1), (400, 1), (401, 2), (560, 2), (561, 3), (16000, 99)):
        frames = frame_signal(np.ones(n), 400, 160)
        assert frames«as rows».shape == (T, 400), f"{n} samples; the axes are («T, W»)"


def test_samples_stay_as_they_were():
    samples = np.array([1.0, 2.0, 3.0])
    frame_signal(samples, 2, 1)
    assert list(samples) == [1, 2, 3]
""",
    notebook=r"""
# %% [markdown]
# ## Your frames
# A tone that rises, as the recogniser cuts it: 25 ms every 10 ms. Neighbouring frames share 15 ms, where their lines
# must lie on each other. In grey behind them, the signal as it was: emphasis makes low tones smaller.

# %%
frames = a2.frame_signal(chirp, 400, 160)
figure, axis = plt.subplots(figsize=(8, 3))
axis.plot(np.arange(640, 1360) / 16, chirp[640:1360], color="lightgrey", label="before emphasis")
for t, style in zip((4, 5, 6), ("-", "--", ":")):
    axis.plot((160 * t + np.arange(400)) / 16, frames«as rows»[t], style, label=f"frame {t}")
axis.set(xlabel="time (ms)", ylabel="amplitude")
axis.legend()
plt.show()
""",
)


# --- 2 --------------------------------------------------------------------------------------------------------------


def cepstra_cases(rng, dialect, solution):
    def case(T, W, F, K, loudness=300.0, silent=0):
        frames = loudness * rng.standard_normal((T, W))
        frames[T - silent :] = 0.0
        return in_dialect(dialect, frames), solution.mel_filters(F, K, 16000)

    return {
        CORE: [case(4, 30, 6, 17), case(5, 100, 12, 65, silent=1)],
        "no frames": [case(0, 20, 5, 17)],
        "one frame": [case(1, 24, 5, 17)],
        "one filter": [case(3, 16, 1, 9)],
        "silence": [case(3, 20, 5, 17, silent=3), case(4, 20, 5, 17, loudness=0.3)],
        "40 filters, 25 ms": [case(3, 400, 40, 257)],
    }


def cepstra_oracle(dialect, frames, filters):
    """The window and the Fourier transform as their formulas have them; the cosine transform by scipy."""
    from scipy.fft import dct

    frames = in_dialect(dialect, frames)
    W, K = frames.shape[1], filters.shape[1]
    mean = 0.54 if dialect["window"] == "Hamming" else 0.5
    n = np.arange(W)
    waves = np.exp(-2j * np.pi * (np.outer(n, np.arange(K)) % (2 * K - 2)) / (2 * K - 2))
    spectrum = (frames * (mean - (1 - mean) * np.cos(2 * np.pi * n / (W - 1)))) @ waves
    power = (spectrum.real**2 + spectrum.imag**2) / (2 * K - 2)
    log_mel = np.array([[max(0.0, float(np.log(max(e, 1e-300)))) for e in row] for row in power @ filters.T])
    log_mel = log_mel.reshape(len(frames), len(filters))
    cepstra = dct(log_mel, type=2, axis=1, norm="ortho")
    return in_dialect(dialect, log_mel), in_dialect(dialect, cepstra)


CEPSTRA = Task(
    name="Log-mel energies and their cosine transform",
    points=25,
    hours=2.0,
    function="cepstra",
    outputs=(Output("log_mel", "float64", 2), Output("coefficients", "float64", 2)),
    tolerance=1e-9,
    code='''
def cepstra(frames, filters):
    """Mel-frequency cepstral coefficients of frames.

    frames   («T, W») float64: a «row» for each frame, already emphasised; T >= 0, W >= 2
    filters  (F, K) float64: how much of each of K frequencies each of F mel filters lets through.  The Fourier
             transform has 2 (K - 1) points, which are W or more; shorter frames are filled up with zeros

    Returns (log_mel, coefficients), both («T, F») float64: natural logarithms of the filters' energies, which count as
    FLOOR if they are smaller, and their orthonormal cosine transform (DCT-II), all F coefficients.
    """
    «frames by rows»
    F, K = filters.shape
    size = 2 * (K - 1)
    windowed = frames * np.«window»(frames.shape[1])
    power = np.abs(np.fft.rfft(windowed, size, axis=1)) ** 2 / size  # (T, K)
    log_mel = np.log(np.maximum(power @ filters.T, FLOOR))  # (T, F)
    angles = np.pi / F * np.outer(np.arange(F), np.arange(F) + 0.5)
    basis = np.sqrt(2 / F) * np.cos(angles)  # a row for each coefficient
    basis[0] /= np.sqrt(2)
    coefficients = log_mel @ basis.T
    return «log_mel», «coefficients»
''',
    mutants=(
        Mutant(
            "no window",
            "as if frames were cut out with sharp edges: multiply them by the «Window» window",
            [("frames * np.«window»(frames.shape[1])", "frames")],
        ),
        Mutant(
            "log10",
            "as if the logarithm were that to base 10",
            [("np.log(np.maximum", "np.log10(np.maximum")],
        ),
        Mutant(
            "not orthonormal",
            "as if the cosine transform had its usual scale of 2: orthonormal, its matrix times its transpose is 1",
            [("np.sqrt(2 / F) * np.cos(angles)", "2 * np.cos(angles)"), ("    basis[0] /= np.sqrt(2)\n", "")],
        ),
        Mutant(
            "first coefficient",
            "as if the first coefficient were scaled like the others: its cosine is 1 everywhere, so it needs less",
            [("    basis[0] /= np.sqrt(2)\n", "")],
        ),
        Mutant(
            "no floor",
            "as if energies had no floor: the logarithm of silence would be minus infinity",
            [("np.maximum(power @ filters.T, FLOOR)", "power @ filters.T")],
        ),
        Mutant(
            "amplitude",
            "as if filters added amplitudes: they add powers, the squares",
            [
                (
                    "np.abs(np.fft.rfft(windowed, size, axis=1)) ** 2 / size",
                    "np.abs(np.fft.rfft(windowed, size, axis=1)) / size",
                )
            ],
        ),
    ),
    cases=cepstra_cases,
    oracle=cepstra_oracle,
    handout=r"""
For each frame, with $M = 2(K - 1)$ points of the Fourier transform:

1. a **«Window»** window, which lets the frame fade in and out: $x_n w_n$ with
   $«formula»$ for $n = 0, \dots, W - 1$ (in numpy: `np.«window»`);
2. the power spectrum $P_k = |\text{FFT}_M(xw)_k|^2 / M$ for $k = 0, \dots, K - 1$ (`np.fft.rfft` fills up with zeros);
3. mel filters, given as a matrix: $e_f = \sum_k \text{filters}_{fk} P_k$, and $e_f = \max(e_f, 1)$ because digital
   silence would have the logarithm $-\infty$ (the 1 is `FLOOR` in your file);
4. natural logarithms $\ell_f = \ln e_f$: these are the log-mel energies;
5. the orthonormal cosine transform, which separates loudness from tilt from finer detail:

$$c_i = s_i \sum_{f=0}^{F-1} \ell_f \cos\Bigl(\frac{\pi i}{F}\bigl(f + \tfrac12\bigr)\Bigr), \qquad
s_0 = \sqrt{\tfrac1F}, \quad s_i = \sqrt{\tfrac2F} \text{ for } i \geq 1.$$

Write the transform as a matrix. Orthonormal means that this matrix times its transpose is 1, so sums of squares stay
as they are: $\sum_i c_i^2 = \sum_f \ell_f^2$.
""",
    tests="""
def test_the_window_and_the_power():
    frames = np.array([[100.0, 0.0, 0.0]])
    «frames as handed out»
    log_mel, _ = cepstra(frames, np.array([[1.0, 0.0, 0.0]]))
    # an impulse has the same power at all frequencies: (100 w)^2 / 4, where w is 0.08 (Hamming) or 0 (Hann); 1 or more
    assert np.allclose(log_mel, np.log([[«of the first sample»]]), rtol=0, atol=1e-12)


def test_the_cosine_transform():
    frames = np.array([[0.0, 6.0, 0.0]])  # both windows are 1 in the middle
    «frames as handed out»
    log_mel, coefficients = cepstra(frames, np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    a, b = np.log(9.0), np.log(27.0)  # 36 / 4, and three times it
    assert np.allclose(log_mel.ravel(), [a, b], rtol=0, atol=1e-12)
    assert np.allclose(coefficients.ravel(), [(a + b) / 2**0.5, (a - b) / 2**0.5], rtol=0, atol=1e-12)


def test_orthonormal():
    frames = 1000 * np.random.default_rng(1).standard_normal((6, 20))
    «frames as handed out»
    log_mel, coefficients = cepstra(frames, mel_filters(8, 17, 16000))
    axis = 1 - «time axis»
    assert np.allclose((log_mel**2).sum(axis=axis), (coefficients**2).sum(axis=axis))


def test_silence():
    frames = np.zeros((2, 20))
    «frames as handed out»
    log_mel, coefficients = cepstra(frames, mel_filters(8, 17, 16000))
    assert log_mel«as rows».shape == (2, 8) and not log_mel.any() and not coefficients.any()
""",
    notebook=r"""
# %% [markdown]
# ## What the recogniser sees
# The rising tone as your log-mel energies, and as your cepstra. Frames come from numpy here, so that this cell needs
# task 2 only.

# %%
frames = 32768 * np.lib.stride_tricks.sliding_window_view(chirp, 400)[::160]
«frames as handed out»
log_mel, coefficients = a2.cepstra(frames, a2.mel_filters(40, 257, 16000))
figure, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 5))
axes[0].imshow(log_mel«as rows».T, origin="lower", aspect="auto")
axes[0].set_ylabel("mel filter")
axes[1].imshow(coefficients«as rows».T[1:], origin="lower", aspect="auto", cmap="coolwarm")
axes[1].set_ylabel("coefficient, without the first")
axes[1].set_xlabel("frame")
plt.show()
""",
)


# --- 3 --------------------------------------------------------------------------------------------------------------


def streaming_cases(rng, dialect, solution):
    axis = 0 if dialect["axes"] == "frames first" else 1

    def case(lengths, window, shift):
        """lengths: for each utterance, how many samples each of its pieces has."""
        utterances = [[rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n) for n in pieces] for pieces in lengths]
        return utterances, window, shift, axis

    def pieces(n, shortest=1, longest=12):
        lengths = []
        while sum(lengths) < n:
            lengths.append(min(int(rng.integers(shortest, longest)), n - sum(lengths)))
        return lengths

    return {
        # 53 samples want a frame that is filled up; 50 do not.
        CORE: [case([pieces(53), pieces(50)], 10, 4), case([pieces(50), pieces(53)], 10, 4)],
        "one piece": [case([[40], [41]], 8, 3)],
        "sample by sample": [case([[1] * 21, [1] * 20], 6, 4)],
        "empty pieces": [case([[0, 7, 0, 0, 9, 0]], 5, 2), case([[0]], 5, 2)],
        "shorter than a window": [case([[2, 1], [1]], 6, 3)],
        "nothing but flush": [case([[], []], 4, 2)],
        "windows without overlap": [case([pieces(30), pieces(31)], 6, 6)],
        "25 ms every 10 ms": [case([pieces(4000, 100, 900)], 400, 160)],
    }


def streaming_oracle(dialect, utterances, window, shift, axis):
    """All frames at once; each belongs to the first call after which all of its samples are there."""
    counts, frames = [], [np.zeros((0, window))]
    for pieces in utterances:
        samples = np.concatenate([np.zeros(0), *pieces])
        frames.append(cut(dialect, samples, window, shift))
        ends = [t * shift + window for t in range(len(frames[-1]))]
        come = 0
        for piece in pieces:
            before, come = come, come + len(piece)
            counts.append(sum(before < end <= come for end in ends))
        counts.append(sum(end > come for end in ends))
    return np.array(counts, dtype=np.int64), in_dialect(dialect, np.concatenate(frames))


STREAMING = Task(
    name="Frames of a stream",
    points=15,
    hours=1.5,
    function="FrameStream",
    outputs=(Output("frames a call", "int64", 1), Output("frames", "float64", 2)),
    tolerance=1e-9,
    drive='''
import numpy as np


def drive(student, utterances, window, shift, axis):
    """One stream for all utterances: each is pushed piece by piece, then flushed."""
    stream = student.FrameStream(window, shift)
    found = []
    for pieces in utterances:
        for piece in pieces:
            found.append(np.array(stream.push(piece)))
            piece[:] = np.inf  # a buffer that the sound card fills again
        found.append(np.array(stream.flush()))
    return np.array([frames.shape[axis] for frames in found]), np.concatenate(found, axis=axis)
''',
    code='''
class FrameStream:
    """Emphasised frames of audio that arrives in pieces: the same as of the whole signal at once.

    The frames are those of task 1: y[n] = x[n] - PREEMPHASIS x[n - 1], y[0] = x[0], cut into frames; the last one is
    filled with «filled with».
    """

    def __init__(self, window, shift):
        """window  W: how many samples a frame has; shift: how many samples later the next begins, 1 <= shift <= W."""
        self.window, self.shift = window, shift
        self.previous = 0.0  # the last sample that came
        self.buffer = np.zeros(0)  # emphasised samples that frames to come still need
        self.some = False  # whether a frame was returned already

    def push(self, samples):
        """More audio.

        samples  (n,) float64, n >= 0; the caller may overwrite this array afterwards

        Returns («k, W») float64: the frames that are complete now and were not before, a «row» each; k may be 0.
        """
        before = np.concatenate([[self.previous], samples])[:-1]
        self.buffer = np.concatenate([self.buffer, samples - PREEMPHASIS * before])
        if len(samples):
            self.previous = samples[-1]
        k = max(0, (len(self.buffer) - self.window) // self.shift + 1)
        frames = np.zeros((k, self.window))
        for t in range(k):
            frames[t] = self.buffer[t * self.shift : t * self.shift + self.window]
        self.buffer = self.buffer[k * self.shift :]
        self.some = self.some or k > 0
        return «frames»

    def flush(self):
        """The end of the audio.

        Returns («k, W») float64: the last frame, filled up, or no frame (k = 0) if every sample is in a frame already.
        After this, the object is as new: an utterance that follows starts at its beginning.
        """
        left = self.buffer
        seen = self.window - self.shift if self.some else 0  # what the last frame has left in the buffer
        self.__init__(self.window, self.shift)
        frames = np.zeros((int(len(left) > seen), self.window))
        if len(frames):
            frames[0, : len(left)] = left
            «fill the last»
        return «frames»
''',
    mutants=(
        Mutant(
            "state reset",
            "as if each piece were emphasised by itself: its first sample has a predecessor, in the piece before",
            [("[[self.previous], samples]", "[[0.0], samples]")],
        ),
        Mutant(
            "tail lost",
            "as if the samples that do not fill a whole frame were lost at the end: flush returns them, filled up",
            [("int(len(left) > seen)", "0")],
        ),
        Mutant(
            "a frame twice",
            "as if the last frame of a piece came again with the next: drop a shift of samples for each frame returned",
            [("self.buffer[k * self.shift :]", "self.buffer[max(k - 1, 0) * self.shift :]")],
        ),
        Mutant(
            "a frame too many",
            "as if flush always had a frame to return: where every sample is in a frame already, it has none",
            [("seen = self.window - self.shift if self.some else 0", "seen = 0")],
        ),
        Mutant(
            "not as new",
            "as if the next utterance went on where the last one has ended: after flush a stream is as new",
            [("        self.__init__(self.window, self.shift)\n", "")],
        ),
    ),
    cases=streaming_cases,
    oracle=streaming_oracle,
    handout=r"""
A microphone gives a few samples at a time. Write a class whose frames, put one behind the other, are exactly those of
task 1 for the whole signal (your class must not need your `frame_signal`, because each task is graded by itself, but
the rules are the same: emphasis first, then frames, the last one filled with «filled with»).

Two things connect a piece with the one before it: the last sample, for the emphasis, and the samples that later frames
still need. `push` returns a frame as soon as its W samples are there, not earlier and not later. `flush` returns the
last, incomplete frame if there are samples that no frame has held yet; then the object is as new.
""",
    tests="""
def test_two_pieces():
    stream = FrameStream(3, 2)
    first, second, last = stream.push(np.array([1.0, 2.0])), stream.push(np.array([3.0, 4.0, 5.0])), stream.flush()
    assert first«as rows».shape == (0, 3) and last«as rows».shape == (0, 3)
    assert np.allclose(second«as rows», [[1, 1.03, 1.06], [1.06, 1.09, 1.12]], rtol=0, atol=1e-12)


def test_the_last_frame():
    stream = FrameStream(3, 2)
    first, last = stream.push(np.array([1.0, 1.0, 1.0, 1.03])), stream.flush()
    assert np.allclose(first«as rows», [[1, 0.03, 0.03]], rtol=0, atol=1e-12)
    assert np.allclose(last«as rows», [[0.03, 0.06, «filler»]], rtol=0, atol=1e-12)


def test_a_second_utterance():
    stream = FrameStream(2, 2)
    stream.push(np.array([7.0, 8.0, 9.0]))
    stream.flush()
    frames = stream.push(np.array([1.0, 2.0]))
    assert np.allclose(frames«as rows», [[1, 1.03]], rtol=0, atol=1e-12)
    assert stream.flush()«as rows».shape == (0, 2)
""",
    notebook=r"""
# %% [markdown]
# ## When do frames come?
# Pieces of 50 ms, as a telephone may send them. The stairs are the frames that your stream has returned so far.

# %%
stream, sizes = a2.FrameStream(400, 160), []
for start in range(0, 8000, 800):
    sizes.append(stream.push(chirp[start : start + 800]).shape[«time axis»])
sizes.append(stream.flush().shape[«time axis»])
plt.step(50 * np.arange(len(sizes)), np.cumsum(sizes), where="post")
plt.plot([0, 500], [0, 50], ":", label="one every 10 ms")
plt.xlabel("ms of audio before the piece")
plt.ylabel("frames so far")
plt.legend()
plt.show()
""",
)


# --- 4 --------------------------------------------------------------------------------------------------------------


def merges_cases(rng, dialect, solution):
    a, b, c, d, e, f = letters(rng, 6)
    times = int(rng.integers(2, 6))
    ties = {c + d + c + d: times, a + b + a + b: times, e + f + e + f: times}  # the first seen is in the middle
    seldom = {c + d + f: 1, c + d + e: 1, c + d: 1, a + b: 9 * times}
    repeats = {a * 5 + b: times}
    return {
        CORE: [(ties, 4), (seldom, 9), (repeats, 5), (random_words(rng, letters(rng, 3), 12), 20)],
        "no words": [({}, 5)],
        "no merges wanted": [({a + b: 2}, 0)],
        "words of one letter": [({a: 3, b: 3, c: 1}, 9)],
        "fewer merges than wanted": [({a + b + c: 2, a + c: 1}, 50)],
        "repeated letters": [({a * n: 1}, 6) for n in (2, 3, 4, 7, 12)],
        "many words": [(random_words(rng, letters(rng, 6), 120, longest=8), 60)],
    }


def merges_oracle(dialect, counts, wanted):
    """Words as flat lists; sort all pairs, glue by an index.  Where ties allow it, the package as well."""
    from mini_pkd.bpe import learn_merges

    alphabet = sorted(set(MARKER + "".join(counts)))
    first = first_id(dialect)
    words = [[first + alphabet.index(letter) for letter in marked(dialect, word)] for word in counts]
    start, merges, times = list(words), [], []
    smallest = dialect["units"] == "marker in front"
    while len(merges) < wanted:
        pairs = [pair for word, n in zip(words, counts.values(), strict=True) for pair in [*pairwise(word)] * n]
        if not pairs:
            break
        unique, often = np.unique(np.array(pairs), axis=0, return_counts=True)  # sorted by (left, right)
        found = [k for k in range(len(unique)) if often[k] == often.max()]
        best = tuple(unique[found[0] if smallest else found[-1]].tolist())
        glued = []
        for word in words:
            out, k = [], 0
            while k < len(word):
                whole = tuple(word[k : k + 2]) == best
                out.append(first + len(alphabet) + len(merges) if whole else word[k])
                k += 1 + whole
            glued.append(out)
        words = glued
        merges.append(best)
        times.append(int(often.max()))
    if smallest:
        found = learn_merges(start, list(counts.values()), wanted, first + len(alphabet))
        assert found == [*zip(merges, times, strict=True)]
    return np.array(merges, dtype=np.int64).reshape(-1, 2), np.array(times, dtype=np.int64)


MERGES = Task(
    name="Learning subword units",
    points=25,
    hours=2.5,
    function="learn_merges",
    outputs=(Output("merges", "int64", 2), Output("times", "int64", 1)),
    tolerance=1e-9,
    code='''
def learn_merges(counts, wanted):
    """Byte pair encoding: which pairs of units are glued together, in which order.

    counts  {word: how often it occurs in the text, 1 or more}; no word is empty or contains MARKER
    wanted  how many merges to learn, 0 or more; fewer when every word is one unit

    Each word gets the MARKER «where the marker is» it.  Ids: «ids».
    First come the characters in the order of their code points, MARKER among them (even without words), then the
    merges in the order in which they are learned.

    Again and again, the pair of neighbours that stands most often in the whole text is glued together, in all words, in
    each from left to right.  Pairs are counted at all positions: AAA holds (A, A) twice.  Of pairs that stand equally
    often, the «winner» wins: (left id, right id), compared as tuples.

    Returns (merges, times): (M, 2) int64, the ids of each pair; (M,) int64, how often it stood in the text when it was
    chosen.
    """
    characters = sorted({MARKER}.union(*counts))
    ids = {character: «first id» + k for k, character in enumerate(characters)}
    words = [[ids[character] for character in «marked word»] for word in counts]
    merges, times = [], []
    while len(merges) < wanted:
        total = {}
        for word, count in zip(words, counts.values()):
            for pair in zip(word, word[1:]):
                total[pair] = total.get(pair, 0) + count
        if not total:
            break
        best = «best pair»
        new = «first id» + len(characters) + len(merges)
        words = [_glue(word, best, new) for word in words]
        merges.append(best)
        times.append(total[best])
    return np.array(merges, dtype=np.int64).reshape(-1, 2), np.array(times, dtype=np.int64)


def _glue(word, pair, new):
    """Replace a pair of neighbours by `new`, from left to right."""
    glued = []
    for unit in word:
        if glued and (glued[-1], unit) == pair:
            glued[-1] = new
        else:
            glued.append(unit)
    return glued
''',
    mutants=(
        Mutant(
            "first-seen ties",
            "as if of pairs that stand equally often the one seen first won: the «winner» wins",
            [("best = «best pair»", "best = max(total, key=total.get)")],
        ),
        Mutant(
            "counts ignored",
            "as if each word occurred once: a pair counts as often as its word",
            [("total.get(pair, 0) + count", "total.get(pair, 0) + 1")],
        ),
        Mutant(
            "AAA from the right",
            "as if pairs were glued from right to left: AAA becomes AA A",
            [
                (
                    """    for unit in word:
        if glued and (glued[-1], unit) == pair:
            glued[-1] = new
        else:
            glued.append(unit)
""",
                    """    for unit in word[::-1]:
        if glued and (unit, glued[0]) == pair:
            glued[0] = new
        else:
            glued.insert(0, unit)
""",
                )
            ],
        ),
        Mutant(
            "other ties",
            "as if of pairs that stand equally often the «other winner» won",
            [("best = «best pair»", "best = «other best pair»")],
        ),
        Mutant(
            "pairs that stand once",
            "as if pairs that stand in the text once were not worth a merge: go on until every word is one unit",
            [("if not total:", "if max(total.values(), default=0) < 2:")],
        ),
    ),
    cases=merges_cases,
    oracle=merges_oracle,
    handout=r"""
A recogniser writes **units**: letters, pieces of words, whole words if they are frequent (Sennrich et al. 2016, arXiv
1508.07909). In the beginning each word is its letters, with the marker ▁ **«where the marker is»** it:

    THE  ->  «THE»

Then, again and again, count all pairs of neighbours in the whole text, glue the most frequent one together everywhere
(here T and H: «TH»), and give the new unit the next id. Pairs never reach from one word to the next. Words
that occur often count as often as they occur.

- Ids: «ids».
  First come the characters, sorted (`sorted` does what is wanted; ▁ comes after the letters), then the merges.
- Ties: the **«winner»** pair wins, compared as Python compares tuples of ids: the left id first, then the right.
- AAA holds the pair (A, A) twice, at two positions, but gluing from left to right leaves AA A.
- Stop when there are as many merges as wanted, or when no word has two units. Pairs that stand once are merged as well.
""",
    tests="""
def test_the_first_merges():
    merges, times = learn_merges({"ABAB": 5}, 2)
    A, B, MARK = «first id», «first id» + 1, «first id» + 2  # the new unit AB is MARK + 1
    assert merges.tolist() == [[A, B], «second merge of ABAB»]  # the second one is a tie
    assert times.tolist() == [10, 5]


def test_three_of_a_kind():
    merges, times = learn_merges({"AAA": 1}, 2)
    A, MARK = «first id», «first id» + 1  # the new unit AA is MARK + 1
    assert merges.tolist() == [[A, A], «second merge of AAA»]  # a tie again, after AA A
    assert times.tolist() == [2, 1]


def test_words_count_as_often_as_they_occur():
    merges, times = learn_merges({"CD": 1, "AB": 3}, 50)
    assert times.tolist() == [3, 3, 1, 1]  # and then every word is one unit


def test_no_words():
    merges, times = learn_merges({}, 3)
    assert merges.shape == (0, 2) and times.shape == (0,)
""",
    notebook=r"""
# %% [markdown]
# ## How many units does a text need?
# The more merges, the fewer units a text is written in. `times` says how many positions each of your merges saves (a
# little less where letters repeat).

# %%
text = "SHE SELLS SEA SHELLS BY THE SEA SHORE THE SHELLS SHE SELLS ARE SEA SHELLS I AM SURE"
counts = {word: text.split().count(word) for word in sorted(set(text.split()))}
merges, times = a2.learn_merges(counts, 40)
start = sum((len(word) + 1) * count for word, count in counts.items())
plt.plot(start - np.concatenate([[0], np.cumsum(times)]), "o-")
plt.axhline(len(text.split()), ls=":", label="one unit a word")
plt.xlabel("merges")
plt.ylabel("units that the text is written in")
plt.legend()
plt.show()

# %%
units = dict(enumerate(sorted(set("".join(counts)) | {a2.MARKER}), start=«first id»))
for left, right in merges.tolist():
    units[«first id» + len(units)] = units[left] + units[right]
print("in the order learned:", " ".join(list(units.values())[-len(merges) :]))
""",
)


# --- 5 --------------------------------------------------------------------------------------------------------------


def encoding_cases(rng, dialect, solution):
    def made(text, alphabet, merges):
        """merges: pairs of numbers, where 0, 1, ... are the characters, the last of them the marker, then merges."""
        merges = np.array(merges, dtype=np.int64).reshape(-1, 2)
        return text, "".join(alphabet) + MARKER, merges + first_id(dialect)

    def trained(text_words, alphabet, wanted):
        counts = random_words(rng, alphabet, 60)
        merges, _ = solution.learn_merges(counts, wanted)
        text = " ".join(random_words(rng, sorted(set("".join(counts))), text_words, longest=9))
        return text, "".join(sorted(set("".join(counts)))) + MARKER, merges

    a, b, c = letters(rng, 3)
    mark, bc, ab = 3, 4, 5
    across = [(2, mark) if dialect["units"] == "marker in front" else (mark, 0)]
    some = letters(rng, 4)
    return {
        CORE: [
            made(a + b + c, [a, b, c], [(1, 2), (0, 1)]),  # b c was learned before a b
            made(f"{b} {a + b + c}", [a, b, c], [(0, 1), (1, 2), (0, ab)]),  # a bc is a unit that nothing leads to
            made(f"{a + b + c} {a + b + c}", [a, b, c], across),
            trained(6, letters(rng, 3), 25),
        ],
        "no text": [made("", [a, b, c], [(0, 1)]), made(" ", [a, b, c], [(0, 1)])],
        "white space": [made(f"  {a}\t{b + c}\n{c}   {a + b} ", [a, b, c], [(1, 2), (0, 1)])],
        "no merges": [made(f"{a + b} {c}", [a, b, c], [])],
        "repeated letters": [made(f"{a * 3} {a * 6} {a * 7}", [a, b, c], [(0, 0), (bc, 0), (bc, bc)])],
        "whole words": [(" ".join(some), "".join(some) + MARKER, solution.learn_merges(dict.fromkeys(some, 2), 9)[0])],
        "long text": [trained(60, letters(rng, 5), 60)],
    }


def encoding_oracle(dialect, text, characters, merges):
    """Replay the training: each merge in turn, over all words.  Where the marker is in front, the package as well."""
    from mini_pkd.bpe import BPE

    first = first_id(dialect)
    ids = []
    for word in text.split():
        units = [first + characters.index(character) for character in marked(dialect, word)]
        for new, (left, right) in enumerate(merges.tolist(), start=first + len(characters)):
            k = 0
            while k < len(units) - 1:
                if units[k] == left and units[k + 1] == right:
                    units[k : k + 2] = [new]
                k += 1
        ids.extend(units)
    if dialect["units"] == "marker in front":
        pairs = [tuple(pair) for pair in (merges - first + 1).tolist()]
        bpe = BPE(characters, pairs, [1] * len(pairs), len(pairs) + len(characters) + 1)
        assert [k - 1 + first for k in bpe.encode(text)] == ids
    return np.array(ids, dtype=np.int64)


ENCODING = Task(
    name="Encoding",
    points=20,
    hours=1.5,
    function="encode",
    outputs=(Output("ids", "int64", 1),),
    tolerance=1e-9,
    code='''
def encode(text, characters, merges):
    """Text as units.

    text        words separated by any white space, perhaps none; all of their characters are in `characters`
    characters  text: the characters in the order of their ids, MARKER among them
    merges      (M, 2) int64: the pairs of ids that are glued together, in the order in which they were learned

    Ids: «ids».
    First come the characters, then the merges in their order.  Each word gets the MARKER «where the marker is» it
    and is encoded by itself: no pair is glued across two words, even if `merges` has one that could be.

    Returns (N,) int64: the ids of all words, one word behind the other.
    """
    id_of = {character: «first id» + k for k, character in enumerate(characters)}
    new_of = {tuple(pair): «first id» + len(characters) + m for m, pair in enumerate(merges.tolist())}
    ids = []
    for word in text.split():
        units = [id_of[character] for character in «marked word»]
        while True:
            known = [pair for pair in zip(units, units[1:]) if pair in new_of]
            if not known:
                break
            first = min(known, key=new_of.get)  # the one that was learned first
            units = _join(units, first, new_of[first])
        ids.extend(units)
    return np.array(ids, dtype=np.int64)


def _join(units, pair, new):
    """Replace a pair of neighbours by `new`, from left to right."""
    joined = []
    for unit in units:
        if joined and (joined[-1], unit) == pair:
            joined[-1] = new
        else:
            joined.append(unit)
    return joined
''',
    mutants=(
        Mutant(
            "longest match",
            "as if the longest unit that fits were taken, again and again: pairs are glued in the order of learning",
            [
                (
                    "    ids = []\n",
                    """    ids = []
    spelled = dict(zip(id_of.values(), characters))
    for (left, right), new in new_of.items():
        spelled[new] = spelled[left] + spelled[right]
""",
                ),
                (
                    """        while True:
            known = [pair for pair in zip(units, units[1:]) if pair in new_of]
            if not known:
                break
            first = min(known, key=new_of.get)  # the one that was learned first
            units = _join(units, first, new_of[first])
""",
                    """        units, rest = [], «marked word»
        while rest:
            fitting = [unit for unit in spelled if rest.startswith(spelled[unit])]
            units.append(max(fitting, key=lambda unit: len(spelled[unit])))
            rest = rest[len(spelled[units[-1]]) :]
""",
                ),
            ],
        ),
        Mutant(
            "leftmost pair",
            "as if the leftmost pair were glued first: it is the one that was learned first",
            [("min(known, key=new_of.get)", "known[0]")],
        ),
        Mutant(
            "across words",
            "as if the text were one long word: no pair is glued across two words",
            [
                (
                    """    for word in text.split():
        units = [id_of[character] for character in «marked word»]
""",
                    """    for words in [text.split()]:
        units = [id_of[character] for word in words for character in «marked word»]
""",
                )
            ],
        ),
        Mutant(
            "last learned",
            "as if the pair that was learned last were glued first",
            [("min(known, key=new_of.get)", "max(known, key=new_of.get)")],
        ),
    ),
    cases=encoding_cases,
    oracle=encoding_oracle,
    handout=r"""
Encoding replays training. Write the word as its characters, with the marker ▁ **«where the marker is»** it.
Of all pairs of neighbours that `merges` knows, glue the one that was **learned first**, everywhere in the word, from
left to right; look again; stop when no pair is known.

- Ids: «ids».
  First come the characters, in the order of `characters`, then the merges in theirs.
- The order matters. If (B, C) was learned before (A, B), then ABC is A BC, although AB is the longer beginning.
- A vocabulary from elsewhere may hold a pair such as («C, ▁»), which stands where two words meet. It is never glued
  there, because each word is encoded by itself.
""",
    tests="""
A, B, C, MARK = range(«first id», «first id» + 4)


def test_the_order_of_learning():
    BC = MARK + 1
    merges = np.array([[B, C], [A, B]])
    assert encode("ABC", "ABC▁", merges).tolist() == «A and BC»


def test_two_words():
    merges = np.zeros((0, 2), dtype=np.int64)
    assert encode(" A\\tB ", "ABC▁", merges).tolist() == «A B»


def test_three_of_a_kind_are_cut():
    AA = MARK + 1
    assert encode("AAA", "ABC▁", np.array([[A, A]])).tolist() == «AA A»


def test_no_pair_across_words():
    merges = np.array([«pair across words»])
    assert encode("C C", "ABC▁", merges).tolist() == «C C»
""",
    notebook=r"""
# %% [markdown]
# ## How your units cut words
# Seven merges, by hand, and what your `encode` makes of words. Put the merges in another order, and look again.

# %%
characters = "AEHLORSY▁"
units, merges = list(characters), []
for left, right in (("S", "H"), ("L", "L"), ("E", "LL"), ("S", "E"), ("SH", "ELL"), ("O", "R"), ("SH", "OR")):
    merges.append((units.index(left) + «first id», units.index(right) + «first id»))
    units.append(left + right)
for text in ("SHE SELLS", "SEA SHELLS", "SHORE SHALE", "YELLOR"):
    ids = a2.encode(text, characters, np.array(merges))
    print(f"{text:12s}", " | ".join(units[k - «first id»] for k in ids.tolist()))
""",
)


MEL = '''
def mel_filters(F, K, rate):
    """(F, K): triangles, equally spaced and equally wide on the mel scale, over K frequencies from 0 to rate / 2."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0, top, F + 2) / 2595) - 1)  # in hertz
    frequencies = np.linspace(0, rate / 2, K)
    rise = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    fall = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))
'''


ASSIGNMENT = Assignment(
    name="a2",
    title="From audio to features, from text to units",
    conventions=CONVENTIONS,
    tasks=(FRAMING, CEPSTRA, STREAMING, MERGES, ENCODING),
    package_files=("features.py", "bpe.py"),
    given=f'''
"""Assignment 2: features and subword units.  Replace each NotImplementedError; numpy is all you need."""

import numpy as np

PREEMPHASIS = 0.97
FLOOR = 1.0  # the smallest energy that counts
MARKER = "▁"  # U+2581, not an underscore: it stands «where the marker is» each word

{MEL}
''',
    test_helpers="""
import numpy as np
from a2 import FrameStream, cepstra, encode, frame_signal, learn_merges, mel_filters
""",
    motivation=r"""
A recogniser hears numbers, 16,000 a second, and writes numbers, one for each piece of a word. This assignment builds
both ends.

    audio  ->  emphasis  ->  frames  ->  power spectrum  ->  mel filters  ->  ln  ->  cosine transform  ->  a network
    text   ->  words     ->  letters with a marker       ->  pairs glued together   ->  ids             ->  a network

On the side of the audio, a frame of 25 ms every 10 ms becomes 40 numbers that say how loud it is at which pitch. A
stream must give the same numbers as a file, to the last digit, or the network meets in its work what it has never seen
in training. On the side of the text, frequent pieces of words become units of their own.

In this class each frame is a **«row»**: («T, W») and («T, F»).
""",
    debugging=r"""
- Count by hand first: samples 1, 2, 3, 4, 5 with a window of 3 and a shift of 2 have two frames.
- Task 3: whatever the pieces, the frames must be those of task 1. Compare for pieces of 1 sample, of 7, and for all at
  once. If only the first sample of a frame is wrong, think about the emphasis.
- Task 2: look at each stage by itself. The cosine transform of a constant is one number, and the matrix of an
  orthonormal transform times its transpose is 1.
- Task 4: print the words after each merge. Ties are everywhere in small texts; in doubt, print all pairs with their
  counts.
- Task 5: encode the words that you have trained on, with all merges: each should become one unit.
- Try the edges: no samples, one sample, exactly one window; no words, words of one letter, AAAA.
""",
    question=r"""
A colleague wants to train on cepstra whose pre-emphasis, frames and floor are computed for each 100 ms piece by itself,
"because the microphone delivers them so", and to test on whole files. Explain in at most ten sentences which numbers
differ between the two and how many of them, whether you would expect the recogniser to suffer, and how you would
measure it. Then: what happens to the units of a word when the tie rule of the vocabulary is changed after training?
""",
    rubric=r"""
- 2 points: the first sample of each piece loses its predecessor, and the frames that reach across two pieces are
  missing or filled up; with 25 ms every 10 ms that is 2 frames in 10 or so, not a rounding error.
- 1 point: training and test differ systematically, and the network learns borders that a file does not have.
- 1 point: measure the word error rate of one model on the same audio, in both forms, with a paired comparison.
- 2 points: other ties give other merges and other ids from there on: the network's outputs then mean other units, and
  everything that it writes is wrong, although any text can still be encoded and decoded.
""",
    notebook=r"""
# %% [markdown]
# # Assignment 2: from audio to features, from text to units
# Write your functions in `a2.py`, next to this notebook; the handout has the formulas. Here you see what your functions
# do. A cell that ends in `NotImplementedError` waits for a task that you have not solved yet.

# %%
# %load_ext autoreload
# %autoreload 2
import a2
import matplotlib.pyplot as plt
import numpy as np

# %% [markdown]
# ## Audio
# One second of a tone that rises from 200 Hz to 4000 Hz, with an overtone. The spectrum of the whole second says which
# frequencies occur, but not when. This is why we cut it into frames.

# %%
seconds = np.arange(16000) / 16000
phase = 2 * np.pi * (200 * seconds + 1900 * seconds**2)
chirp = 0.3 * np.sin(phase) + 0.1 * np.sin(2 * phase)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.plot(seconds[:800], chirp[:800])
left.set_xlabel("seconds")
right.plot(np.fft.rfftfreq(16000, 1 / 16000), np.abs(np.fft.rfft(chirp)) ** 2)
right.set_xlabel("Hz")
plt.show()

# %% [markdown]
# ## Mel filters
# They are given: narrow where the ear is exact, wide where it is not.

# %%
plt.plot(np.linspace(0, 8000, 257), a2.mel_filters(20, 257, 16000).T)
plt.xlabel("Hz")
plt.show()
""",
)
