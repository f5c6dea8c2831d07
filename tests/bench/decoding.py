"""Decoding speed: the real-time factor of greedy search and of beam 8, on one thread and on two.

Seconds of work over seconds of speech, features to text: encoder, prediction network, joint and search.
Reading audio and computing MFCCs are not included (about 0.003).  Utterances are decoded one after the other,
as transcription does; --batch decodes them together.

A size's model is runs/<size>/T1/model.npz where that exists, or --model PATH.  Otherwise it has random weights, and
the table says so: a random model hardly ever agrees with itself on a symbol, so beams stay wide and times
are those of the worst case; with --bias B its blank gets B nats more, which makes it speak about as much as
a trained one.  tiny and small decode the corpus's test set, full ten synthetic utterances of 4 to 16 s.

examples:
  python -m tests.bench.decoding
  python -m tests.bench.decoding small --model runs/small/S1/model.npz --threads 1
  python -m tests.bench.decoding full --beams 1 8 --utterances 2
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from . import measure

MODULE = "tests.bench.decoding"
SIZES = ("tiny", "small", "full")
SECONDS_PER_ROW = 0.01


class Decoder:
    """A model and utterances, in a worker process."""

    def __init__(self, size, path, bias, utterances, batch):
        from mini_pkd.model_file import load_model
        from mini_pkd.scales import get_scale
        from mini_pkd.seeds import generator
        from mini_pkd.transducer import Transducer

        scale = get_scale(size)
        self.normaliser = self.bpe = None
        if path:
            self.model, self.normaliser, self.bpe, _ = load_model(path)
        else:
            config = scale.sizes["T1"].config(scale.settings.vocab_size)
            self.model = Transducer(config, generator(0, "benchmark", "decoding"))
            self.model.output_bias.data[0] += bias
        self.max_symbols = scale.settings.max_symbols
        rows = self._corpus(scale, utterances) if size != "full" else self._synthetic(utterances)
        self.groups = [rows] if batch else [[r] for r in rows]
        self.seconds = SECONDS_PER_ROW * sum(map(len, rows))
        self.found = None

    def _corpus(self, scale, utterances):
        from mini_pkd.audio_file import read_audio
        from mini_pkd.corpus_folder import find_parts, read_part
        from mini_pkd.features import Normaliser, mfcc
        from mini_pkd.prepared_corpus import REPOSITORY

        parts = find_parts(REPOSITORY / scale.settings.data)
        role = next(role for role in ("test-clean", "test-other", "dev", "train") if parts.get(role))
        found = read_part(parts[role][0])[0]
        some = found[:: max(1, len(found) // utterances)][:utterances]
        rows = [mfcc(read_audio(utterance.audio)) for utterance in some]
        normaliser = self.normaliser or Normaliser.estimate(rows)
        return [normaliser(r) for r in rows]

    def _synthetic(self, utterances):
        rng = np.random.default_rng(0)
        return [rng.standard_normal((n, 40), dtype=np.float32) for n in rng.integers(400, 1600, utterances)]

    def run(self, beam):
        """Decode everything; the number of symbols found."""
        from mini_pkd.decode import greedy
        from mini_pkd.fast_beam import beam_search

        said = 0
        for group in self.groups:
            lengths = np.array([len(rows) for rows in group])
            enc, lengths = self.model.encode(np.concatenate(group), lengths)
            if beam == 0:  # the encoder alone
                continue
            if beam == 1:
                said += sum(map(len, greedy(self.model, enc, lengths, self.max_symbols)))
            else:
                said += sum(len(b[0].labels) for b in beam_search(self.model, enc, lengths, beam, self.max_symbols))
        return said

    def describe(self):
        rows = sum(len(group) for group in self.groups)
        return {"parameters": self.model.num_parameters(), "seconds": self.seconds, "utterances": rows,
                "symbols": self.model.config.symbols}  # fmt: skip


def work(arguments):
    """The loop of a worker process."""
    state = {}

    def start():
        state["it"] = Decoder(arguments.worker, arguments.model, arguments.bias, arguments.utterances, arguments.batch)
        return state["it"].describe()

    measure.serve(
        {
            "start": start,
            "said": lambda beam: state["it"].run(beam),
            "run": lambda beam: measure.timed(lambda: state["it"].run(beam)),
            "memory": measure.peak_memory,
        }
    )


def run(size, threads, arguments):
    """Rows of the table: the encoder alone, greedy, beams."""
    from mini_pkd.prepared_corpus import REPOSITORY

    path = arguments.model or REPOSITORY / "runs" / size / "T1" / "model.npz"
    path = Path(path).resolve() if Path(path).exists() or arguments.model else None
    flags = ["--utterances", arguments.utterances, "--bias", arguments.bias] + ["--batch"] * arguments.batch
    flags += ["--model", path] if path else []
    rows = []
    with measure.workers(MODULE, {size: ["--worker", size, *flags]}, threads) as running:
        worker = running[size]
        about = worker.ask("start")
        speech = about["seconds"]
        origin = "trained" if path else f"random weights, blank + {arguments.bias:g}"
        for beam in [0, *arguments.beams]:
            said = worker.ask("said", beam=beam)  # the warm-up
            seconds = measure.median([worker.ask("run", beam=beam) for _ in range(arguments.repeats)])
            name = {0: "encoder alone", 1: "greedy"}.get(beam, f"beam {beam}")
            rows.append([f"{size} {name}", threads, f"{seconds / speech:.4f}", f"{speech / seconds:.0f}",
                         f"{said / speech:.1f}" if beam else ""])  # fmt: skip
        peak = worker.ask("memory")[0]
    how = "together" if arguments.batch else "one by one"
    print(
        f"{size}: {about['parameters'] / 1e6:.2f} M parameters, V = {about['symbols']} ({origin}); threads: {threads}; "
        f"{about['utterances']} utterances {how}, {speech:.0f} s of speech; peak {peak:.0f} MiB",
        flush=True,
    )
    return rows


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", metavar="size", default=list(SIZES), help=f"(default: {' '.join(SIZES)})")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 8], help="1 is greedy search (default: 1 8)")
    parser.add_argument("--utterances", type=int, default=10, help="how many to decode (default: 10)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: 5)")
    parser.add_argument("--model", type=Path, help="a model.npz, for the one size that is named")
    parser.add_argument("--bias", type=float, default=0.0, help="added to a random model's blank (default: 0)")
    parser.add_argument("--batch", action="store_true", help="decode all utterances together")
    parser.add_argument("--worker", choices=SIZES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return work(arguments)
    for size in arguments.sizes:
        if size not in SIZES:
            parser.error(f"there is no size {size!r}; known are {', '.join(SIZES)}")
    if arguments.model and (len(arguments.sizes) != 1 or not arguments.model.exists()):
        parser.error(f"--model {arguments.model} wants one size beside it, and a file that exists")

    from mini_pkd import UserError

    print(measure.heading(MODULE, argv))
    rows = []
    try:
        for size in arguments.sizes:
            for threads in arguments.threads:
                rows += run(size, threads, arguments)
    except (measure.Failed, UserError) as error:
        print(f"decoding: {error}", file=sys.stderr)
        return 2
    print()
    print(measure.table(["decoding", "threads", "real-time factor", "times faster", "symbols / s"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
