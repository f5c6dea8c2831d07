"""Speech to text with a trained model, from files or from a pipe, whole or while it is being spoken.

    python -m mini_pkd.transcribe runs/tiny/T1/model.npz a.flac b.wav
    python -m mini_pkd.transcribe --stream runs/tiny/T1/model.npz a.flac
    arecord -f S16_LE -r 16000 -t raw | python -m mini_pkd.transcribe --stream runs/tiny/T1/model.npz -

There is one model for both ways.  Every stage remembers what later samples still need of earlier ones, so a
stream is the same chain, fed with a piece at a time:

    samples -> StreamingMFCC -> Normaliser -> EncoderStream -> encoder_to_joint -> BeamStream -> units -> text
               rows of 10 ms                  rows of 80 ms

The audio may be cut anywhere: the text in the end is that of the whole file.  (The arithmetic per row is the
same; BLAS may round a product of 2 rows and one of 200 differently in the last bit, so two hypotheses whose
probabilities agree to six digits could in principle change places.)

With a beam the partial text may still change; a greedy partial text (--beam 1) only ever grows.
"""

import argparse
import io
import os
import shutil
import sys
from contextlib import nullcontext

import numpy as np

from . import UserError
from .command import Parser, command, complain
from .conformer import EncoderStream
from .decode import BEAM, MAX_BEAM, MAX_SYMBOLS, GreedyStream, Hypothesis, greedy
from .fast_beam import BeamStream, beam_search
from .features import SAMPLE_RATE, StreamingMFCC, mfcc, read_audio
from .model_file import load_model
from .stop_signal import StopSignal
from .tensor import Tensor, no_grad

PIECE_MS = 160  # two encoder rows
MAX_PIECE_MS = 3_600_000  # an hour
WHOLE = SAMPLE_RATE * 10  # samples read from a pipe at a time when nobody waits for partial results


class Recogniser:
    """A model with all that belongs to it.  beam 1 is greedy search.

        recogniser = Recogniser.load("runs/tiny/T1/model.npz")
        text = recogniser.transcribe(read_audio("a.flac"))
    """

    def __init__(self, model, normaliser, bpe, beam=BEAM, max_symbols=MAX_SYMBOLS):
        self.model, self.normaliser, self.bpe = model, normaliser, bpe
        self.beam, self.max_symbols = beam, max_symbols

    @classmethod
    def load(cls, path, beam=BEAM):
        """From a model.npz that the cascade wrote; anything else is a UserError."""
        model, normaliser, bpe, _ = load_model(path)
        return cls(model, normaliser, bpe, beam)

    def transcribe(self, waveform):
        """(n,) float samples in [-1, 1] at 16 kHz -> text."""
        return self.n_best(waveform)[0][0]

    def n_best(self, waveform, n=1):
        """-> up to n pairs (text, log-probability), best first; greedy search gives one, without a number.

        Two of the texts can be equal: hypotheses are sequences of units, and T HE spells THE as well.
        """
        features = self.normaliser(mfcc(waveform))  # (T, F)
        enc, lengths = self.model.encode(features, np.array([len(features)]))
        if self.beam == 1:
            found = [Hypothesis(greedy(self.model, enc, lengths, self.max_symbols)[0], None)]
        else:
            found = beam_search(self.model, enc, lengths, self.beam, self.max_symbols, n)[0]
        return self.spell(found)

    def stream(self):
        """A fresh RecogniserStream: one utterance, in pieces."""
        return RecogniserStream(self)

    def spell(self, hypotheses):
        """Hypotheses -> [(text, log-probability), ...]."""
        return [(self.bpe.decode(h.labels), h.log_prob) for h in hypotheses]


class RecogniserStream:
    """One utterance in pieces: `push(samples)` returns the text so far, `finish()` the final one."""

    def __init__(self, recogniser):
        self.recogniser = recogniser
        self.mfcc = StreamingMFCC()
        self.encoder = EncoderStream(recogniser.model.encoder)
        if recogniser.beam == 1:
            self.search = GreedyStream(recogniser.model, recogniser.max_symbols)
        else:
            self.search = BeamStream(recogniser.model, recogniser.beam, recogniser.max_symbols)
        self.samples = 0

    def push(self, samples):
        """(n,) float samples, any n -> the text so far."""
        self.samples += len(samples)
        return self._hear(self.encoder.push(self.recogniser.normaliser(self.mfcc.push(samples))))

    def finish(self):
        """-> the final text."""
        return self.finish_n_best()[0][0]

    def finish_n_best(self, n=1):
        """-> up to n pairs (text, log-probability), as Recogniser.n_best."""
        if self.samples == 0:
            raise UserError("there were no samples: check how the audio was recorded.")
        # What waits in each stage goes on through the next ones: a padded frame, then rows without partner.
        self._hear(self.encoder.push(self.recogniser.normaliser(self.mfcc.flush())))
        self._hear(self.encoder.finish())
        if self.recogniser.beam == 1:
            return self.recogniser.spell([Hypothesis(self.search.finish(), None)])
        return self.recogniser.spell(self.search.finish(n))

    def _hear(self, encoded):
        with no_grad():
            rows = self.recogniser.model.encoder_to_joint(Tensor(encoded)).data  # (m, J), m may be 0
        return self.recogniser.bpe.decode(self.search.push(rows))


# --- audio in pieces ----------------------------------------------------------------------------------------

CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b".snd", b"caff")  # first bytes of audio files


def cut(waveform, size):
    """(n,) samples -> pieces of `size` samples, the last one shorter."""
    for start in range(0, len(waveform), size):
        yield waveform[start : start + size]


def pipe_pieces(source, size):
    """Audio from a pipe as it arrives, in float32 pieces of `size` samples.

    Raw 16 bit samples (little-endian, mono, 16 kHz) and the plain WAV of such samples are handed on while
    more is still being spoken.  Any other audio file has to arrive whole before it can be read.
    """
    head = _read(source, 44)  # the length of a plain WAV header
    left = None  # bytes still to come, None: until the pipe ends
    if _is_plain_wav(head):
        left = int.from_bytes(head[40:44], "little")
        if left == 0 or left >= 2**31 - 2**16:  # who writes to a pipe does not know the length yet
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
                "stdin ends in the middle of a 16 bit sample: give a WAV file, or raw mono int16 samples at 16 kHz."
            )
        seen = True
        yield np.frombuffer(data[: 2 * size], dtype="<i2").astype(np.float32) / 32768
        data = data[2 * size :]
    if not seen:
        raise UserError("stdin holds no samples: pipe a WAV file or raw mono int16 samples at 16 kHz into it.")


def _read(source, size=-1):
    try:
        return source.read(size)
    except OSError as error:
        raise UserError(
            f"stdin cannot be read ({error.strerror or error}): pipe a WAV file or raw mono int16 samples into it."
        ) from None


def _is_plain_wav(head):
    """44 bytes of header, then PCM: 1 channel, 16 kHz, 16 bit.  What `arecord` and `sox` write."""
    if len(head) < 44 or head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or head[36:40] != b"data":
        return False
    fmt_bytes, coding, channels, rate = (
        int.from_bytes(head[a:b], "little") for a, b in ((16, 20), (20, 22), (22, 24), (24, 28))
    )
    return (fmt_bytes, coding, channels, rate, head[34]) == (16, 1, 1, SAMPLE_RATE, 16)


# --- the command --------------------------------------------------------------------------------------------


def _from_1_to(most):
    """An argparse type."""

    def whole(text):
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")
        return int(text)

    return whole


def _parse(argv):
    parser = Parser(
        "transcribe",
        description="Speech to text.  Prints a line `FILE TEXT` for every file.",
        epilog="""\
examples, with a model that `python -m mini_pkd.cascade` has trained:
  transcribe two files          %(prog)s runs/tiny/T1/model.npz a.flac b.wav
  watch it listen               %(prog)s --stream runs/tiny/T1/model.npz a.flac
  the five best guesses         %(prog)s --n-best 5 runs/tiny/T1/model.npz a.flac
  from a microphone (Ctrl-C ends the sentence)
          arecord -f S16_LE -r 16000 -t raw | %(prog)s --stream runs/tiny/T1/model.npz -

Files may be anything that soundfile reads (.wav, .flac, .ogg, .opus), one channel, any usual sample rate.
A file that cannot be read is reported on stderr, the others are still transcribed, and the exit status is 1.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL.npz", help="a model.npz in a run's folder, one per model")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="audio; `-` is stdin, a WAV or raw mono int16 samples at 16 kHz"
    )
    parser.add_argument(
        "--stream", action="store_true", help="feed the audio in pieces and show the text as it grows, ending in ..."
    )
    parser.add_argument(
        "--piece-ms", type=_from_1_to(MAX_PIECE_MS), default=PIECE_MS, metavar="MS",
        help=f"length of a piece with --stream, in milliseconds (default: {PIECE_MS}); the final text is the same",
    )  # fmt: skip
    parser.add_argument(
        "--beam", type=_from_1_to(MAX_BEAM), default=BEAM, metavar="N",
        help=f"hypotheses kept while searching (default: {BEAM}, at most {MAX_BEAM}); 1 is greedy search: faster, "
        "a little worse",
    )  # fmt: skip
    parser.add_argument(
        "--n-best", type=_from_1_to(MAX_BEAM), default=1, metavar="N",
        help="print the N best, as `FILE RANK LOG_PROBABILITY TEXT`; N at most the beam",
    )  # fmt: skip
    arguments = parser.parse_intermixed_args(argv)
    if arguments.n_best > arguments.beam:
        parser.error(f"--n-best {arguments.n_best} needs a --beam of at least {arguments.n_best}")
    return arguments


@command("transcribe")
def main(argv=None):
    """A file that cannot be read does not keep the others from being transcribed."""
    arguments = _parse(argv)
    status = 0
    _refuse_special(arguments.model, "name a model.npz.")
    recogniser = Recogniser.load(arguments.model, arguments.beam)
    for name in arguments.files:
        try:
            _transcribe_one(recogniser, name, arguments)
        except UserError as error:
            status = complain("transcribe", error)
    return status


def _refuse_special(name, advice):
    """A named pipe would wait for ever, and a device such as /dev/zero never ends."""
    if os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name):
        raise UserError(f"{name} is a pipe, a device or a socket where a file is expected: {advice}")


def _transcribe_one(recogniser, name, arguments):
    piece = SAMPLE_RATE * arguments.piece_ms // 1000 if arguments.stream else WHOLE
    from_pipe = name == "-"
    if from_pipe:
        if sys.stdin is None:
            raise UserError("stdin is closed: pipe a WAV file or raw mono int16 samples at 16 kHz into it.")
        pieces = pipe_pieces(sys.stdin.buffer, piece)
    else:
        _refuse_special(name, "give - instead of its name, and send the audio to stdin.")
        pieces = cut(read_audio(name), piece)
    if not arguments.stream:
        _print_final(name, recogniser.n_best(np.concatenate(list(pieces)), arguments.n_best), arguments)
        return
    stream, line = recogniser.stream(), PartialLine(name, sys.stdout)
    # Ctrl-C while somebody speaks into a microphone means "that was all", not "throw it away".
    with StopSignal() if from_pipe else nullcontext() as stop:
        for samples in pieces:
            line.show(stream.push(samples))
            if stop is not None and stop.raised:
                break
    final = stream.finish_n_best(arguments.n_best)
    line.clear()
    _print_final(name, final, arguments)


def _print_final(name, found, arguments):
    for rank, (text, log_prob) in enumerate(found, start=1):
        words = [name, text] if arguments.n_best == 1 else [name, str(rank), f"{log_prob:.3f}", text]
        print(" ".join(words).rstrip(), flush=True)  # no text: the name alone, as in our other text files


class PartialLine:
    """Text that grows: on a terminal one line that is written again and again, elsewhere a line per change."""

    def __init__(self, name, file):
        self.name, self.file, self.shown = name, file, ""
        self.terminal = file.isatty()

    def show(self, text):
        """The text so far; nothing happens when it is what it was."""
        if text == self.shown:
            return
        self.shown = text
        line = f"{self.name} {text} ..."
        if self.terminal:
            room = shutil.get_terminal_size().columns - 1
            if len(line) > room:  # a line that wraps could not be written over: show its end
                line = "..." + line[len(line) - max(room - 3, 0) :]
            self.file.write(f"\r{line}\x1b[K")
        else:
            self.file.write(f"{line}\n")
        self.file.flush()

    def clear(self):
        """Make room for the final text."""
        if self.terminal and self.shown:
            self.file.write("\r\x1b[K")


if __name__ == "__main__":
    sys.exit(main())
