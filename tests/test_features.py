"""features.py against python_speech_features itself, against arithmetic, and streaming against offline."""

import io

import numpy as np
import pytest
import python_speech_features
import soundfile

from mini_pkd import UserError
from mini_pkd.features import (
    NUM_FEATURES,
    SAMPLE_RATE,
    Normaliser,
    StreamingMFCC,
    mfcc,
    num_frames,
    read_audio,
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


# ---------------------------------------------------------------- mfcc


@pytest.mark.parametrize("samples", LENGTHS)
def test_equals_the_library_where_no_energy_is_below_the_floor(samples):
    # The values reach 100 and are stored in float32 (6e-8 relative): 2e-5 is a few roundings. A single
    # sample is one frame of almost all zeros, yet 0.5 * 32768 keeps its energies far above the floor.
    waveform = noise(samples, seed=samples) if samples > 400 else noise(samples, samples, 0.05) + 0.5
    rows = mfcc(waveform)
    assert rows.dtype == np.float32 and rows.shape == (num_frames(samples), NUM_FEATURES)
    assert np.abs(rows - reference(waveform)).max() < 2e-5


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


# ---------------------------------------------------------------- streaming


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


# ---------------------------------------------------------------- normaliser


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
    again = Normaliser.from_arrays({key: value.copy() for key, value in normaliser.arrays().items()})
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


# ---------------------------------------------------------------- reading audio


def sine(frequency, rate, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


@pytest.mark.parametrize("suffix, tolerance", [("wav", 1 / 32768), ("flac", 1 / 32768), ("ogg", 0.05)])
def test_reads_formats(tmp_path, suffix, tolerance):
    path = tmp_path / f"a.{suffix}"
    waveform = sine(440, 16000)
    soundfile.write(path, waveform, 16000)
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        audio = read_audio(source)
        assert audio.dtype == np.float32 and audio.shape == waveform.shape
        assert np.abs(audio - waveform).max() <= tolerance * 1.01


def test_opus_if_the_library_can(tmp_path):
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        pytest.skip("this libsndfile cannot write Opus")
    path = tmp_path / "a.opus"
    waveform = np.concatenate([sine(440, 16000), np.zeros(16000, np.float32)])
    soundfile.write(path, waveform, 16000, format="OGG", subtype="OPUS")
    audio = read_audio(path)
    # The decoder may give the audio back at Opus's own 48 kHz, and the resampler then rounds up.
    assert abs(len(audio) - len(waveform)) <= 1
    assert np.isfinite(mfcc(audio)).all() and mfcc(audio)[-20:].std() < 5


def test_a_pipe_without_seek(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(440, 16000), 16000)

    class Pipe(io.RawIOBase):
        def __init__(self, data):
            self.rest = io.BytesIO(data)

        def read(self, size=-1):
            return self.rest.read(size)

        def seekable(self):
            return False

    assert len(read_audio(Pipe(path.read_bytes()))) == 8000


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000])
def test_resampling_keeps_what_fits(tmp_path, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(1000, rate), rate, subtype="FLOAT")
    audio = read_audio(path)
    assert len(audio) == 8000 or abs(len(audio) - 8000) <= 2
    expected = sine(1000, 16000)[: len(audio)]
    middle = slice(500, 7500)  # the filter rings at the ends
    # scipy's default Kaiser filter has a passband ripple of about 0.3 %: 0.5 * 0.003, doubled.
    assert np.abs(audio[middle] - expected[middle]).max() < 3e-3


@pytest.mark.parametrize("rate, frequency", [(44100, 12000), (48000, 10000), (22050, 10000), (96000, 15000)])
def test_resampling_removes_what_would_fold_back(tmp_path, rate, frequency):
    path = tmp_path / "a.wav"
    soundfile.write(path, sine(frequency, rate), rate, subtype="FLOAT")
    audio = read_audio(path)
    # Keeping every third sample would leave the full 0.5 here, at 16000 - frequency Hz.
    assert np.abs(audio[500:-500]).max() < 0.5e-2  # 40 dB down


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("empty.wav", b"", "cannot be read"),
        ("text.flac", b"this is not audio at all", "cannot be read"),
        ("half.ogg", b"OggS\x00\x02", "cannot be read"),
    ],
)
def test_unreadable_files(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_audio(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals_name_the_file(tmp_path):
    def refused(name, samples, words, rate=16000):
        path = tmp_path / name
        soundfile.write(path, samples, rate, subtype="FLOAT")
        with pytest.raises(UserError, match=words) as caught:
            read_audio(path)
        assert name in str(caught.value)

    refused("stereo.wav", np.zeros((100, 2), np.float32), "mono")
    refused("none.wav", np.zeros(0, np.float32), "no samples")
    refused("nan.wav", np.array([0, np.nan, 0], np.float32), "NaN")
    refused("inf.wav", np.array([0, np.inf, 0], np.float32), "NaN or infinite")
    refused("loud.wav", np.array([0, 20000.0], np.float32), "20000|2e\\+04")
    refused("slow.wav", np.zeros(100, np.float32), "100 Hz", rate=100)
    with pytest.raises(UserError, match="does not exist"):
        read_audio(tmp_path / "absent.wav")
    with pytest.raises(UserError, match="folder"):
        read_audio(tmp_path)
    with pytest.raises(UserError, match="the audio stream"):
        read_audio(io.BytesIO(b"nothing"))


def test_a_file_cut_short_is_refused_or_honest(tmp_path):
    for suffix in ("flac", "wav", "ogg"):
        path = tmp_path / f"cut.{suffix}"
        soundfile.write(path, noise(32000), 16000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        try:
            audio = read_audio(path)
        except UserError as error:
            assert path.name in str(error)
        else:  # .wav and .ogg headers do not promise a length that soundfile could hold them to
            assert suffix in ("wav", "ogg") and 0 < len(audio) < 32000


def test_one_sample_is_one_row(tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, np.array([0.5], np.float32), SAMPLE_RATE, subtype="FLOAT")
    assert mfcc(read_audio(path)).shape == (1, 40)
