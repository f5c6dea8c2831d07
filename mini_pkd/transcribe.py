"""Speech to text with a trained model, from files or from a pipe, at the end or while somebody still speaks.

    python -m mini_pkd.transcribe runs/tiny/T1/model.npz a.flac b.wav
    python -m mini_pkd.transcribe --stream runs/tiny/T1/model.npz a.flac
    arecord -f S16_LE -r 16000 -t raw | python -m mini_pkd.transcribe --stream runs/tiny/T1/model.npz -

One model serves both ways.  A stream is the same chain of stages, fed with a piece at a time, and every stage remembers
what later samples need of earlier ones:

    samples -> StreamingMFCC -> Normaliser -> EncoderStream -> encoder_to_joint -> BeamStream -> units -> text
               rows of 10 ms                  rows of 80 ms

The audio may be cut anywhere: the final text is that of the whole file.  (Only rounding may differ, between a matrix
product of 2 rows and one of 200; two hypotheses of nearly equal probability could then change places.)  With a beam
the text so far may still change; a greedy one (--beam 1) only grows.
"""

import sys
from contextlib import nullcontext

import numpy as np

from . import UserError
from .audio_pieces import audio_pieces, refuse_special_file
from .command import command, complain
from .conformer import EncoderStream
from .decode import BEAM, MAX_SYMBOLS, GreedyStream, Hypothesis, greedy
from .fast_beam import BeamStream, beam_search
from .features import SAMPLE_RATE, SHIFT, WINDOW, StreamingMFCC, mfcc
from .model_file import load_model
from .partial_line import PartialLine
from .ragged import Batch
from .rnnt_loss import log_probs
from .stop_signal import StopSignal
from .tensor import Tensor, no_grad
from .transcribe_options import read_options

WHOLE = SAMPLE_RATE * 10  # samples read at a time without --stream


class Recogniser:
    """A model with its normaliser and units.  beam 1 is greedy search.

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

        Two of the texts can be equal: hypotheses are sequences of units, and THE can be one unit or T and HE.
        """
        features = self.normaliser(mfcc(waveform))  # (T, F)
        enc, lengths = self.model.encode(features, np.array([len(features)]))  # (T', J)
        if self.beam == 1:
            found = [Hypothesis(greedy(self.model, enc, lengths, self.max_symbols)[0], None)]
        else:
            found = beam_search(self.model, enc, lengths, self.beam, self.max_symbols, n)[0]
        return self.spell(found)

    def lattice(self, waveform, text):
        """To look at: the lattice of a transcript, as rnnt_loss.py takes it: log_probs (T', U+1, V), labels (U,)."""
        features, labels = self.normaliser(mfcc(waveform)), np.array(self.bpe.encode(text), dtype=np.int64)
        batch = Batch([""], features, np.array([len(features)]), labels, np.array([len(labels)]))
        with no_grad():
            inputs, _ = self.model.lattice_inputs(batch, features)
        return log_probs(*(tensor.data for tensor in inputs)), labels

    def emissions(self, waveform):
        """When greedy search speaks: [(unit, encoder row, seconds of audio heard by then), ...]."""
        features, search = self.normaliser(mfcc(waveform)), GreedyStream(self.model, self.max_symbols)
        labels = search.push(self.model.encode(features, np.array([len(features)]))[0])
        last_frame = [(row + 1) * self.model.encoder.config.reduction - 1 for row in search.rows]
        heard = [min(t * SHIFT + WINDOW, len(waveform)) / SAMPLE_RATE for t in last_frame]
        return [(self.bpe.units[i], row, s) for i, row, s in zip(labels, search.rows, heard, strict=True)]

    def stream(self):
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
        return self._search_on(self.encoder.push(self.recogniser.normaliser(self.mfcc.push(samples))))

    def finish(self):
        """-> the final text."""
        return self.finish_n_best()[0][0]

    def finish_n_best(self, n=1):
        """-> up to n pairs (text, log-probability), as Recogniser.n_best."""
        if self.samples == 0:
            raise UserError("there were no samples; check how the audio was recorded.")
        # Two stages still hold something back: the MFCCs a last frame to pad, the encoder rows that wait to be pooled.
        self._search_on(self.encoder.push(self.recogniser.normaliser(self.mfcc.flush())))
        self._search_on(self.encoder.finish())
        greedily = self.recogniser.beam == 1
        return self.recogniser.spell([Hypothesis(self.search.finish(), None)] if greedily else self.search.finish(n))

    def _search_on(self, encoded):
        """(m, D) rows of the encoder, m may be 0 -> the text so far."""
        with no_grad():
            rows = self.recogniser.model.encoder_to_joint(Tensor(encoded)).data  # (m, J)
        return self.recogniser.bpe.decode(self.search.push(rows))


# --- the command ----------------------------------------------------------------------------------


@command("transcribe")
def main(arguments=None):
    options = read_options(arguments)
    status = 0
    refuse_special_file(options.model, "name a model.npz.")
    recogniser = Recogniser.load(options.model, options.beam)
    for name in options.files:
        try:
            if options.stream:
                found = _listen(recogniser, name, options)
            else:
                found = recogniser.n_best(np.concatenate(list(audio_pieces(name, WHOLE))), options.n_best)
        except UserError as error:  # the other files are transcribed all the same
            status = complain("transcribe", error)
            continue
        for rank, (text, log_prob) in enumerate(found, start=1):
            words = [name, text] if options.n_best == 1 else [name, str(rank), f"{log_prob:.3f}", text]
            print(" ".join(words).rstrip(), flush=True)  # rstrip: where there is no text, the name alone
    return status


def _listen(recogniser, name, options):
    pieces = audio_pieces(name, SAMPLE_RATE * options.piece_ms // 1000)
    stream, line = recogniser.stream(), PartialLine(name, sys.stdout)
    # Ctrl-C while somebody speaks into a microphone means "that was all", not "throw it away".
    with StopSignal() if name == "-" else nullcontext() as stop:
        for samples in pieces:
            line.show(stream.push(samples))
            if stop is not None and stop.raised:
                break
    found = stream.finish_n_best(options.n_best)
    line.clear()
    return found


if __name__ == "__main__":
    sys.exit(main())
