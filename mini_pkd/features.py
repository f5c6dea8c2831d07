"""Features: a waveform becomes one row of 40 MFCCs (mel-frequency cepstral coefficients) every 10 ms.

The recipe (the paper's "40 MFCCs, 25 ms window, 10 ms shift"), stage by stage:

    pre-emphasis        y[n] = x[n] - 0.97 x[n-1]                                lifts the high frequencies
    frames              400 samples (25 ms) every 160 (10 ms)                    times a Hamming window
    power spectrum      |FFT_512|^2 / 512                                        257 frequencies
    40 mel filters      e_m = sum_f filter_m[f] power[f],   e_m = max(e_m, 1)    triangles, wider for high frequencies
    cepstrum            c = DCT-II( ln e ), orthonormal, all 40 kept             c_0 loudness, c_1 tilt, finer detail

Scale: samples in [-1, 1] are multiplied by 32768 first, so an energy of 1 is roughly 10 dB above
the rounding noise of 16 bit audio, and silence maps to a row of zeros.  The floor max(e, 1) is there because digital
silence (which synthetic speech and Ogg files are full of) would otherwise give ln(2e-16) = -36 where a quiet
room gives about 0, and such outliers would dominate the statistics of the normaliser.

Frames to filters are computed by python_speech_features, whose own mfcc() gives the same rows apart from the floor,
if its lifter and its energy column are switched off.

`StreamingMFCC` gives the same rows for audio that arrives in pieces of any size.  `Normaliser` subtracts
one mean and divides by one deviation per coefficient, both measured once on the training set: nothing
in it depends on the rest of the utterance, so it can stream too.  Audio files are read by audio_file.py.
"""

from collections import namedtuple

import numpy as np
from python_speech_features import fbank, get_filterbanks
from scipy.fft import dct

from . import UserError

SAMPLE_RATE = 16000
NUM_FEATURES = 40
WINDOW = 400  # samples: 25 ms
SHIFT = 160  # samples: 10 ms
NFFT = 512
PREEMPHASIS = 0.97
ENERGY_FLOOR = 1.0
SCALE = 32768.0

# feature_store.py keeps this line beside the features it has computed, and computes them anew when it has changed.
RECIPE = (
    f"mfcc {NUM_FEATURES} rate {SAMPLE_RATE} window {WINDOW} shift {SHIFT} nfft {NFFT} "
    f"preemphasis {PREEMPHASIS} floor {ENERGY_FLOOR} scale {SCALE} hamming; version 1"
)


# --- the stages -----------------------------------------------------------------------------------


def num_frames(samples):
    """The number of rows: 1 up to 400 samples, then 1 + ceil((samples - 400) / 160); zeros fill up the last frame.

    >>> [num_frames(n) for n in (0, 1, 400, 401, 560, 561, 16000)]
    [0, 1, 1, 2, 2, 3, 99]
    """
    return 0 if samples <= 0 else 1 + max(0, -(-(samples - WINDOW) // SHIFT))


def emphasise(samples, previous=0.0):
    """(n,) samples in [-1, 1] -> y[n] = x[n] - 0.97 x[n-1], scaled, float64; x[-1] is `previous`."""
    x = np.asarray(samples, dtype=np.float64) * SCALE
    return x - PREEMPHASIS * np.concatenate([[previous * SCALE], x[:-1]])


def power_spectra_readable(emphasised):
    """Frames and their power spectra, one after the other: (n,) -> (T, 257)."""
    T = num_frames(len(emphasised))
    padded = np.pad(emphasised, (0, (T - 1) * SHIFT + WINDOW - len(emphasised)))
    power = np.empty((T, NFFT // 2 + 1))
    for t in range(T):
        frame = padded[t * SHIFT : t * SHIFT + WINDOW] * np.hamming(WINDOW)  # (400,)
        power[t] = np.abs(np.fft.rfft(frame, NFFT)) ** 2 / NFFT
    return power


def mel_energies_readable(emphasised):
    """Frames, power spectrum and mel filters: (n,) -> (T, 40)."""
    filters = get_filterbanks(NUM_FEATURES, NFFT, SAMPLE_RATE)  # (40, 257), triangles
    return power_spectra_readable(emphasised) @ filters.T


def mel_energies(emphasised):
    """The same for all frames at once, by python_speech_features: (n,) -> (T, 40)."""
    return fbank(
        emphasised, samplerate=SAMPLE_RATE, winlen=WINDOW / SAMPLE_RATE, winstep=SHIFT / SAMPLE_RATE, nfft=NFFT,
        nfilt=NUM_FEATURES,  # the default of 26 would silently cap the number of cepstra at 26
        preemph=0,  # `emphasise` has done it: where a piece of a stream begins, it needs the sample before
        winfunc=np.hamming,  # the default is rectangular
    )[0]  # fmt: skip


def cepstra(energies):
    """(T, 40) mel energies -> (T, 40) MFCCs, float32."""
    log_energies = np.log(np.maximum(energies, ENERGY_FLOOR))
    return dct(log_energies, type=2, axis=1, norm="ortho").astype(np.float32)


# --- a whole waveform, and a stream ---------------------------------------------------------------


def _check_waveform(waveform):
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise UserError(f"audio has shape {waveform.shape} where one channel, (n,), is expected: take their mean.")
    if waveform.dtype.kind != "f":
        raise UserError(f"audio samples are {waveform.dtype} and must be floats in [-1, 1]: divide 16 bits by 32768.")
    return waveform


def mfcc(waveform, block=4096):
    """(n,) samples in [-1, 1] at 16 kHz -> (T, 40) float32 rows.

    It takes `block` frames at a time (4096 are 41 s), because every frame copies 400 samples: an hour of audio
    at once would need more than a gigabyte.
    """
    waveform = _check_waveform(waveform)
    if len(waveform) == 0:
        raise UserError("audio without samples has no features: check how it was recorded.")
    y = emphasise(waveform)
    T = num_frames(len(y))
    rows = np.empty((T, NUM_FEATURES), dtype=np.float32)
    for t in range(0, T, block):
        stop = min(t + block, T)
        rows[t:stop] = cepstra(mel_energies(y[t * SHIFT : (stop - 1) * SHIFT + WINDOW]))
    return rows  # (T, 40)


Stages = namedtuple("Stages", "wave spectrum log_mel cepstra")


def stages(waveform):
    """To look at: (n,) samples -> wave (n,) pre-emphasised, spectrum (T, 257) power, log_mel and cepstra (T, 40)."""
    y = emphasise(_check_waveform(waveform))
    energies = np.maximum(mel_energies(y), ENERGY_FLOOR)
    return Stages(y, power_spectra_readable(y), np.log(energies), cepstra(energies))


class StreamingMFCC:
    """The rows of `mfcc` for audio that arrives in pieces.

    Two things connect a piece with the one before: the last sample (pre-emphasis), and the samples
    that later frames still need.  A row is returned as soon as its 400 samples are there; that of the zero-padded
    last frame, if there is one, comes from `flush`, after which the object is as new.
    """

    def __init__(self):
        self._previous = 0.0  # the last sample seen
        self._buffer = np.zeros(0)  # emphasised samples that frames to come still need
        self._emitted = 0  # rows returned so far

    def push(self, samples):
        """(n,) samples -> (k, 40) rows that are complete now; k may be 0."""
        samples = _check_waveform(samples)
        if len(samples) > 0:
            self._buffer = np.concatenate([self._buffer, emphasise(samples, self._previous)])
            self._previous = float(samples[-1])
        k = (len(self._buffer) - WINDOW) // SHIFT + 1  # whole windows in the buffer
        if k <= 0:
            return np.zeros((0, NUM_FEATURES), dtype=np.float32)
        rows = cepstra(mel_energies(self._buffer[: WINDOW + (k - 1) * SHIFT]))  # (k, 40)
        self._buffer = self._buffer[k * SHIFT :].copy()
        self._emitted += k
        return rows

    def flush(self):
        """End of the audio: (1, 40) for the padded last frame, or (0, 40) if every sample is in a frame already."""
        left = self._buffer
        already_seen = WINDOW - SHIFT if self._emitted else 0  # what the last frame has left in the buffer
        self.__init__()  # as new
        if len(left) <= already_seen:
            return np.zeros((0, NUM_FEATURES), dtype=np.float32)
        return cepstra(mel_energies(left))  # (1, 40)


# --- normalisation --------------------------------------------------------------------------------


class Normaliser:
    """rows -> (rows - mean) / std, with the mean and standard deviation of each coefficient in the training set."""

    def __init__(self, mean, std):
        mean, std = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
        if mean.shape != (NUM_FEATURES,) or std.shape != (NUM_FEATURES,):
            raise UserError(
                f"a normaliser needs {NUM_FEATURES} means and {NUM_FEATURES} deviations but was given "
                f"{mean.shape} and {std.shape}: the checkpoint or store belongs to other features."
            )
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise UserError("a normaliser needs finite means and positive deviations: measure the training set again.")
        self.mean, self.std = mean, std

    def __call__(self, rows):
        """(N, 40) -> (N, 40) float32, a new array."""
        return ((rows - self.mean) / self.std).astype(np.float32, copy=False)

    @classmethod
    def from_sums(cls, count, total, squares):
        """From the number of rows, their sum (40,) and the sum of their squares (40,), in float64."""
        if count <= 0:
            raise UserError("there are no rows to measure a normaliser on: check the training set.")
        mean = np.asarray(total, dtype=np.float64) / count
        std = np.sqrt(np.maximum(np.asarray(squares, dtype=np.float64) / count - mean**2, 0.0))
        return cls(mean, np.where(std > 1e-5, std, 1.0))  # a coefficient that never moves becomes 0, not 0/0

    @classmethod
    def estimate(cls, arrays):
        """Measure on an iterable of (T, 40) arrays, such as a feature store; sums run in float64."""
        count, total, squares = 0, np.zeros(NUM_FEATURES), np.zeros(NUM_FEATURES)
        for rows in arrays:
            rows = np.asarray(rows, dtype=np.float64)
            count += len(rows)
            total += rows.sum(axis=0)
            squares += np.square(rows).sum(axis=0)
        return cls.from_sums(count, total, squares)


def demo():
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.1 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    rows = mfcc(tone)
    print(f"one second of a 440 Hz tone: {rows.shape}, because 1 + ceil((16000 - 400) / 160) = 99")
    stream = StreamingMFCC()
    pieces = [stream.push(tone[i : i + 777]) for i in range(0, len(tone), 777)] + [stream.flush()]
    difference = np.abs(np.concatenate(pieces) - rows).max()
    print(f"in pieces of 777 samples: the same rows, largest difference {difference:.1e}")
    silence = mfcc(np.zeros(1600))
    print(f"digital silence: largest value {np.abs(silence).max():.1f} (the floor: ln 1 = 0)")
    # Energies times 16 add the same constant to every log energy above the floor: only c_0 moves.
    rise = np.median(mfcc(4 * tone)[:, 0] - rows[:, 0])
    print(f"four times louder: c0 rises by {rise:.2f}, and sqrt(40) ln 16 = {np.sqrt(40) * np.log(16):.2f}")


if __name__ == "__main__":
    demo()
