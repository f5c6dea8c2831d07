"""features.py against python_speech_features itself, against arithmetic, and streaming against offline."""

import numpy as np
import pytest
import python_speech_features

from mini_pkd import UserError
from mini_pkd.features import (
    NUM_FEATURES,
    Normaliser,
    StreamingMFCC,
    emphasise,
    mel_energies,
    mel_energies_readable,
    mfcc,
    num_frames,
    stages,
)

LENGTHS = [1, 2, 159, 160, 161, 399, 400, 401, 559, 560, 561, 719, 720, 721, 3999, 4000, 16000, 20001]


def noise(samples, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(samples)).clip(-1, 1).astype(np.float32)


def reference(waveform):
    """The library's own mfcc with the settings of the recipe, on the whole signal at once."""
    return python_speech_features.mfcc(
        waveform.astype(np.float64) * 32768,
        samplerate=16000,
        numcep=40,
        nfilt=40,
        nfft=512,
        ceplifter=0,
        winfunc=np.hamming,
        appendEnergy=False,
    )


# --- mfcc -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", LENGTHS)
def test_equals_the_library_where_no_energy_is_below_the_floor(samples):
    # The values reach 100 and are stored in float32 (6e-8 relative): 2e-5 is a few roundings. A single
    # sample is one frame of almost all zeros, yet 0.5 * 32768 keeps its energies far above the floor.
    waveform = noise(samples, seed=samples) if samples > 400 else noise(samples, samples, 0.05) + 0.5
    rows = mfcc(waveform)
    assert rows.dtype == np.float32 and rows.shape == (num_frames(samples), NUM_FEATURES)
    assert np.abs(rows - reference(waveform)).max() < 2e-5


@pytest.mark.parametrize("samples", LENGTHS)
def test_energies_equal_those_of_one_frame_after_the_other(samples):
    y = emphasise(noise(samples, seed=samples))
    fast, readable = mel_energies(y), mel_energies_readable(y)
    assert fast.shape == readable.shape == (num_frames(samples), NUM_FEATURES)
    # Sums of up to 60 float64 products, in another order.  Where the sum is 0 the library writes a tiny number.
    assert np.abs(fast - readable).max() <= 1e-13 * fast.max()


@pytest.mark.parametrize("samples", LENGTHS)
def test_the_stages_lead_from_the_wave_to_mfcc(samples):
    x = noise(samples)
    wave, spectrum, log_mel, cepstra = stages(x)
    T = num_frames(samples)
    assert wave.shape == (samples,) and spectrum.shape == (T, 257) and log_mel.shape == (T, 40)
    np.testing.assert_array_equal(wave, emphasise(x))
    filters = python_speech_features.get_filterbanks(40, 512, 16000)
    # both in float64, the sums of 257 terms in another order
    np.testing.assert_allclose(log_mel, np.log(np.maximum(spectrum @ filters.T, 1)), atol=1e-11)
    np.testing.assert_array_equal(cepstra, mfcc(x))


@pytest.mark.parametrize("block", [1, 2, 7, 98, 99, 100])
def test_blocks_do_not_show(block):
    waveform = noise(16000)
    assert np.abs(mfcc(waveform, block=block) - mfcc(waveform)).max() < 2e-5  # BLAS may sum in other order


def test_frame_count_formula():
    for n in LENGTHS:
        expected = 1 if n <= 400 else 1 + int(np.ceil((n - 400) / 160))
        assert num_frames(n) == expected == len(mfcc(noise(n)))


def test_all_forty_cepstra_are_there_and_unliftered():
    # The first row is the orthonormal DCT of log energies, so its squares sum to those of the logs.
    waveform = noise(400)
    emphasised = np.append(waveform[0], waveform[1:] - 0.97 * waveform[:-1].astype(np.float64)) * 32768
    power = np.abs(np.fft.rfft(emphasised * np.hamming(400), 512)) ** 2 / 512
    energies = python_speech_features.get_filterbanks(40, 512, 16000) @ power
    logs = np.log(energies)
    row = mfcc(waveform)[0]
    assert abs(np.square(logs).sum() / np.square(row.astype(np.float64)).sum() - 1) < 1e-6
    k = 23  # a lifter of 22 would flip this one's sign
    basis = np.sqrt(2 / 40) * np.cos(np.pi * k * (2 * np.arange(40) + 1) / 80)
    assert abs(row[k] - logs @ basis) < 1e-5


def test_silence_is_zero_and_finite():
    assert np.abs(mfcc(np.zeros(16000, dtype=np.float32))).max() == 0.0
    half = np.concatenate([noise(8000), np.zeros(8000, dtype=np.float32), np.full(8000, 1e-30, np.float32)])
    rows = mfcc(half)
    assert np.isfinite(rows).all()
    assert np.abs(rows[60:100]).max() == 0.0


def test_empty_and_wrong_arrays_are_refused():
    with pytest.raises(UserError, match="without samples"):
        mfcc(np.zeros(0, dtype=np.float32))
    with pytest.raises(UserError, match="one channel"):
        mfcc(np.zeros((100, 2), dtype=np.float32))
    with pytest.raises(UserError, match="int16"):
        mfcc(np.zeros(100, dtype=np.int16))
    with pytest.raises(UserError, match="int16"):
        StreamingMFCC().push(np.zeros(100, dtype=np.int16))


# --- streaming ------------------------------------------------------------------------------------


def stream_in_pieces(waveform, sizes):
    stream, rows, start = StreamingMFCC(), [], 0
    for size in sizes:
        rows.append(stream.push(waveform[start : start + size]))
        start += size
    assert start >= len(waveform)
    rows.append(stream.flush())
    return np.concatenate(rows)


@pytest.mark.parametrize("seed", range(40))
def test_any_cutting_gives_the_same_rows(seed):
    rng = np.random.default_rng(seed)
    samples = int(rng.choice(LENGTHS)) if seed % 2 else int(rng.integers(1, 6000))
    waveform = noise(samples, seed, level=[0.1, 1e-4][seed % 3 == 0])
    whole = mfcc(waveform)
    largest = int(rng.choice([1, 3, 160, 400, 700, 5000] if samples < 1500 else [50, 400, 5000]))
    sizes, left = [], samples
    while left > 0:
        sizes.append(int(rng.integers(0, largest + 1)))  # pieces of no samples too
        left -= sizes[-1]
    streamed = stream_in_pieces(waveform, sizes)
    assert streamed.shape == whole.shape
    assert np.abs(streamed - whole).max() < 2e-5  # float32 rounding of values up to 100


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 560, 561, 1000])
def test_pieces_of_one_sample(samples):
    waveform = noise(samples)
    streamed = stream_in_pieces(waveform, [1] * samples)
    assert streamed.shape == mfcc(waveform).shape
    assert np.abs(streamed - mfcc(waveform)).max() < 2e-5


def test_a_frame_leaves_as_soon_as_it_is_complete():
    stream = StreamingMFCC()
    assert stream.push(noise(399)).shape == (0, 40)
    assert stream.push(noise(1)).shape == (1, 40)
    assert stream.push(noise(159)).shape == (0, 40)
    assert stream.push(noise(1)).shape == (1, 40)
    assert stream.flush().shape == (0, 40)


def test_flush_without_audio_and_reuse_after_flush():
    stream = StreamingMFCC()
    assert stream.flush().shape == (0, 40)
    waveform = noise(1234)
    for _ in range(2):  # the second round must not remember the first
        rows = np.concatenate([stream.push(waveform), stream.flush()])
        assert np.abs(rows - mfcc(waveform)).max() < 2e-5


# --- normaliser -----------------------------------------------------------------------------------


def test_normaliser_equals_numpy_and_survives_a_round_trip():
    rng = np.random.default_rng(0)
    arrays = [(rng.standard_normal((T, 40)) * 7 + 30).astype(np.float32) for T in (1, 5, 300, 2)]
    for rows in arrays:
        rows[:, 17] = 3.0  # a coefficient that never moves
    normaliser = Normaliser.estimate(iter(arrays))
    everything = np.concatenate(arrays).astype(np.float64)
    assert np.abs(normaliser.mean - everything.mean(axis=0)).max() < 1e-5
    moving = np.arange(40) != 17
    assert np.abs(normaliser.std - everything.std(axis=0))[moving].max() < 1e-5
    again = Normaliser(normaliser.mean.copy(), normaliser.std.copy())
    rows = again(arrays[2])
    assert rows.dtype == np.float32 and np.array_equal(rows, normaliser(arrays[2]))
    assert np.abs(rows[:, 17]).max() < 1e-6
    assert np.array_equal(np.concatenate([again(r) for r in np.split(arrays[2], [1, 50])]), rows)  # streams


def test_normaliser_refuses_nonsense():
    with pytest.raises(UserError, match="no rows"):
        Normaliser.estimate([])
    with pytest.raises(UserError, match="40"):
        Normaliser(np.zeros(13), np.ones(13))
    with pytest.raises(UserError, match="positive"):
        Normaliser(np.zeros(40), np.zeros(40))
