"""audio_pieces.py: every kind of pipe.  (Files, stdin and what is refused: test_transcribe.py.)"""

import io
import struct

import numpy as np
import pytest
import soundfile

from mini_pkd import UserError
from mini_pkd.audio_pieces import pipe_pieces


def waveform(seed, samples):
    """A gliding tone in noise; multiples of 1/32768, so that 16 bits hold it exactly."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    tone = 0.3 * np.sin(2 * np.pi * (300 + 900 * rng.random() * np.sin(3 * t)) * t)
    return (np.round((tone + 0.02 * rng.standard_normal(samples)) * 32768) / 32768).astype(np.float32)


def int16(samples):
    return (samples * 32768).astype("<i2").tobytes()


def wav_header(data_bytes, rate=16000, channels=1, bits=16):
    fmt = struct.pack("<IHHIIHH", 16, 1, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, data_bytes + 36)) + b"WAVEfmt " + fmt + b"data" + struct.pack(
        "<I", data_bytes
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 16, 100, 5000])
@pytest.mark.parametrize("claimed", ["right", 0, 2**31 - 37, 2**32 - 1])
def test_pipes_carry_raw_samples_or_a_wav(size, claimed):
    audio = waveform(0, 1000)
    raw = int16(audio)
    length = len(raw) if claimed == "right" else claimed
    for content in (raw, wav_header(length) + raw):
        pieces = list(pipe_pieces(io.BytesIO(content), size))
        assert {len(p) for p in pieces[:-1]} <= {size} and 0 < len(pieces[-1]) <= size
        np.testing.assert_array_equal(np.concatenate(pieces), audio)


def test_what_follows_the_samples_of_a_wav_is_not_audio():
    audio = waveform(0, 1000)
    content = wav_header(2000) + int16(audio) + b"LIST\x04\x00\x00\x00abcd"
    np.testing.assert_array_equal(np.concatenate(list(pipe_pieces(io.BytesIO(content), 64))), audio)


def test_raw_samples_arrive_while_more_are_to_come():
    """A live stream must not wait for its end: after two pieces, only two pieces have been read."""
    source = io.BytesIO(int16(waveform(0, 16000)))
    pieces = pipe_pieces(source, 100)
    next(pieces), next(pieces)
    assert source.tell() == 400


@pytest.mark.parametrize("samples", [1, 3, 21, 22, 23])
def test_pipes_shorter_than_a_wav_header(samples):
    audio = waveform(0, samples)
    np.testing.assert_array_equal(np.concatenate(list(pipe_pieces(io.BytesIO(int16(audio)), 8))), audio)


@pytest.mark.parametrize("kind", [("flac", "FLAC", "PCM_16"), ("wav", "WAV", "FLOAT"), ("wavex", "WAVEX", "PCM_16")])
def test_other_files_on_a_pipe_are_read_whole(kind):
    audio, file = waveform(0, 3000), io.BytesIO()
    soundfile.write(file, audio, 16000, format=kind[1], subtype=kind[2])
    pieces = list(pipe_pieces(io.BytesIO(file.getvalue()), 700))
    assert [len(p) for p in pieces] == [700, 700, 700, 700, 200]
    np.testing.assert_array_equal(np.concatenate(pieces), audio)


def test_a_wav_of_another_rate_on_a_pipe_is_resampled():
    audio = waveform(0, 8000)
    content = wav_header(16000, rate=8000) + int16(audio)
    assert sum(map(len, pipe_pieces(io.BytesIO(content), 700))) == 16000


def test_bad_pipes():
    for content in (b"", wav_header(0)):
        with pytest.raises(UserError, match="no samples"):
            list(pipe_pieces(io.BytesIO(content), 100))
    with pytest.raises(UserError, match="middle of a 16 bit sample"):
        list(pipe_pieces(io.BytesIO(b"\0" * 77), 100))
    with pytest.raises(UserError, match="2 channels"):
        list(pipe_pieces(io.BytesIO(wav_header(400, channels=2) + bytes(400)), 100))


def test_a_pipe_that_cannot_be_read(tmp_path):
    with open(tmp_path / "written", "wb", buffering=0) as file, pytest.raises(UserError, match="stdin cannot be read"):
        list(pipe_pieces(file, 100))
