"""Audio in pieces, from files and from stdin: WAV, raw samples as they arrive, or any format that soundfile reads."""

import io
import os
import sys

import numpy as np

from . import UserError
from .audio_file import read_audio
from .features import SAMPLE_RATE

CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"caff")  # first bytes of audio files


def audio_pieces(name, size):
    """An audio file, or stdin for `-` -> float32 pieces of `size` samples at 16 kHz, the last one shorter."""
    if name != "-":
        refuse_special_file(name, "give - instead of its name, and send the audio to stdin.")
        return cut(read_audio(name), size)
    if sys.stdin is None:
        raise UserError("stdin is closed; pipe a WAV file or raw mono int16 samples at 16 kHz into it.")
    return pipe_pieces(sys.stdin.buffer, size)


def refuse_special_file(name, advice):
    """A named pipe would wait for ever, and a device such as /dev/zero never ends."""
    if os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name):
        raise UserError(f"{name} is a pipe, a device or a socket where a file is expected; {advice}")


def cut(waveform, size):
    """(n,) samples -> pieces of `size` samples, the last one shorter."""
    for start in range(0, len(waveform), size):
        yield waveform[start : start + size]


def pipe_pieces(source, size):
    """Audio from a pipe as it arrives.

    Raw 16 bit samples (little-endian, mono, 16 kHz) and the plain WAV of such samples are handed on while more is
    still being spoken.  Any other audio file has to arrive whole before it can be read.
    """
    head = _read(source, 44)  # the length of a plain WAV header
    left = None  # bytes still to come, None: until the pipe ends
    if _is_plain_wav(head):
        left = int.from_bytes(head[40:44], "little")
        if left == 0 or left >= 2**31 - 2**16:  # a program that writes to a pipe does not know the length yet
            left = None
        head = b""
    elif head[:4] in CONTAINERS:
        yield from cut(read_audio(io.BytesIO(head + _read(source))), size)
        return
    seen, data = False, head
    while True:
        wanted = 2 * size - len(data) if left is None else min(2 * size - len(data), left)
        new = _read(source, wanted) if wanted > 0 else b""
        left = left if left is None else left - len(new)
        data += new
        if not data:
            break
        if len(data) % 2:
            raise UserError(
                "stdin ends in the middle of a 16 bit sample; give a WAV file, or raw mono int16 samples at 16 kHz."
            )
        seen = True
        yield np.frombuffer(data[: 2 * size], dtype="<i2").astype(np.float32) / 32768
        data = data[2 * size :]
    if not seen:
        raise UserError("stdin holds no samples; pipe a WAV file or raw mono int16 samples at 16 kHz into it.")


def _read(source, size=-1):
    try:
        return source.read(size)
    except OSError as error:
        raise UserError(
            f"stdin cannot be read ({error.strerror or error}); pipe a WAV file or raw mono int16 samples into it."
        ) from None


def _is_plain_wav(head):
    """44 bytes of header, then PCM: 1 channel, 16 kHz, 16 bit.  What `arecord` and `sox` write."""
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or head[36:40] != b"data":
        return False
    fmt_bytes, coding, channels, rate = (
        int.from_bytes(head[a:b], "little") for a, b in ((16, 20), (20, 22), (22, 24), (24, 28))
    )
    return (fmt_bytes, coding, channels, rate, head[34]) == (16, 1, 1, SAMPLE_RATE, 16)
