"""audio_file.py: formats, sample rates, pipes, and files that are damaged."""

import io

import numpy as np
import pytest
import soundfile

from mini_pkd import UserError
from mini_pkd.audio_file import inspect_audio, read_audio
from mini_pkd.features import SAMPLE_RATE, mfcc


def noise(samples, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(samples)).clip(-1, 1).astype(np.float32)


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


def test_inspection_reads_the_header_only(tmp_path):
    soundfile.write(tmp_path / "a.wav", sine(440, 8000), 8000)
    assert inspect_audio(tmp_path / "a.wav") == (0.5, None)
    soundfile.write(tmp_path / "b.wav", np.zeros((800, 2)), 8000)
    assert inspect_audio(tmp_path / "b.wav") == (0.1, "has 2 channels")
    soundfile.write(tmp_path / "c.wav", np.zeros(0), 8000)
    assert inspect_audio(tmp_path / "c.wav") == (0.0, "holds no samples")
    (tmp_path / "d.wav").write_bytes(b"no audio")
    seconds, wrong = inspect_audio(tmp_path / "d.wav")
    assert seconds == 0 and wrong.startswith("cannot be read as audio (") and "\n" not in wrong
