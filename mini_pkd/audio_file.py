"""Reading audio files of any format and sample rate; a damaged one is refused in one sentence.

Whatever the file holds, the result is one channel of float32 samples in [-1, 1], SAMPLE_RATE of them a second.
"""

import io
import math
import os
from pathlib import Path

import numpy as np
import soundfile

from . import UserError
from .features import SAMPLE_RATE

LOWEST_RATE, HIGHEST_RATE = 4000, 192000


def read_audio(path_or_file):
    """Audio file (a path or a binary file object) -> (n,) float32 in [-1, 1] at 16 kHz.

    Reads every format that soundfile knows (.flac, .wav, .ogg, .opus, ...). Other sample rates are resampled with a
    polyphase low-pass filter, so nothing above the new Nyquist frequency folds back into the speech.
    """
    if isinstance(path_or_file, (str, Path)):
        name = str(path_or_file)
        if not os.path.exists(name):
            raise UserError(f"audio file {name} does not exist: check the path.")
        if os.path.isdir(name):
            raise UserError(f"{name} is a folder where an audio file is expected: name one file in it.")
        source = os.fsencode(name)  # soundfile would encode a str strictly, and refuse a name that is not UTF-8
    else:
        name = str(getattr(path_or_file, "name", "the audio stream"))
        source = path_or_file
        if not (hasattr(source, "seekable") and source.seekable()):
            source = io.BytesIO(source.read())  # a pipe: soundfile must be able to seek

    try:
        with soundfile.SoundFile(source) as file:
            rate, channels, promised = file.samplerate, file.channels, file.frames
            if channels != 1:
                raise UserError(
                    f"{name} has {channels} channels where one is expected: convert it to mono first, "
                    f"for example with `ffmpeg -i IN -ac 1 OUT.wav`."
                )
            if not LOWEST_RATE <= rate <= HIGHEST_RATE:
                raise UserError(
                    f"{name} has a sample rate of {rate} Hz, outside {LOWEST_RATE} to {HIGHEST_RATE}: "
                    f"convert it to {SAMPLE_RATE} Hz first."
                )
            waveform = file.read(dtype="float32")  # (n,)
    except UserError:
        raise
    except (soundfile.SoundFileError, OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        reason = _one_line(error).rstrip(".")
        raise UserError(f"{name} cannot be read as audio ({reason}): convert it to .wav or .flac.") from None

    if len(waveform) == 0:
        raise UserError(f"{name} holds no samples: record or download it again.")
    if len(waveform) < promised:
        raise UserError(f"{name} is cut short ({len(waveform)} of {promised} samples can be read): download it again.")
    if not np.isfinite(waveform).all():
        raise UserError(f"{name} holds NaN or infinite samples: write it again from its source.")
    peak = float(np.abs(waveform).max())
    if peak > 2.0:  # lossy codecs overshoot 1 by a little; 2 and more means another scale was used
        raise UserError(f"{name} holds samples up to {peak:.4g} where [-1, 1] is expected: scale it before saving.")
    if rate != SAMPLE_RATE:
        from scipy.signal import resample_poly  # here, because importing it takes most of a second

        common = math.gcd(rate, SAMPLE_RATE)
        waveform = resample_poly(waveform.astype(np.float64), SAMPLE_RATE // common, rate // common)
    return np.clip(waveform, -1.0, 1.0).astype(np.float32)


def inspect_audio(path):
    """-> (seconds, what is wrong or None), from the header alone."""
    try:
        info = soundfile.info(os.fsencode(path))
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        return 0.0, f"cannot be read as audio ({_one_line(error)})"
    wrong = None
    if info.frames == 0:
        wrong = "holds no samples"
    elif info.channels != 1:
        wrong = f"has {info.channels} channels"
    return info.frames / info.samplerate, wrong


def _one_line(error):
    return " ".join(str(error).split())
