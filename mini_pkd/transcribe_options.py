"""The command line of transcribe.py: what may be asked for, and within which limits."""

import argparse

from .command import Parser
from .decode import BEAM, MAX_BEAM

PIECE_MS = 160  # two encoder rows
MAX_PIECE_MS = 3_600_000  # an hour


def read_options(arguments):
    """The options of one call; a wrong one ends the program with a sentence."""
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
If one cannot be read, stderr says why, the others are still transcribed, and the exit status is 1.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = "audio; `-` is stdin, a WAV or raw mono int16 samples at 16 kHz"
    stream = "feed the audio in pieces and show the text as it grows, ending in ..."
    piece_ms = f"length of a piece with --stream, in milliseconds (default: {PIECE_MS}); the final text is the same"
    beam = f"hypotheses to keep (default: {BEAM}, at most {MAX_BEAM}); 1 is greedy search: faster, a little worse"
    n_best = "print the N best, as `FILE RANK LOG_PROBABILITY TEXT`; N at most the beam"
    parser.add_argument("model", metavar="MODEL.npz", help="a model.npz in a run's folder, one per model")
    parser.add_argument("files", nargs="+", metavar="FILE", help=files)
    parser.add_argument("--stream", action="store_true", help=stream)
    parser.add_argument("--piece-ms", type=int, default=PIECE_MS, metavar="MS", help=piece_ms)
    parser.add_argument("--beam", type=int, default=BEAM, metavar="N", help=beam)
    parser.add_argument("--n-best", type=int, default=1, metavar="N", help=n_best)
    options = parser.parse_intermixed_args(arguments)
    for name, most in (("piece_ms", MAX_PIECE_MS), ("beam", MAX_BEAM), ("n_best", MAX_BEAM)):
        if not 1 <= (value := getattr(options, name)) <= most:
            parser.error(f"--{name.replace('_', '-')} must be from 1 to {most}, not {value}")
    if options.n_best > options.beam:
        parser.error(f"--n-best {options.n_best} needs a --beam of at least {options.n_best}")
    return options
