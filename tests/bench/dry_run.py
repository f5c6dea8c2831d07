"""Is the dry run right?  What it predicts for 20 steps of each pair of student and teacher, beside 20 real steps.

The steps are training's own, on shuffled batches of an epoch of the corpus, each student drawn anew.  Both run in turn
on the same threads; the machine should be quiet.  Within 20 % is the goal.  Without a corpus 2000 utterances of
noise take its place, as long as LibriSpeech's mean.

examples:
  python -m tests.bench.dry_run
  python -m tests.bench.dry_run small --pairs 3
  python -m tests.bench.dry_run full --steps 2 --pairs 2 --set microbatch_frames=4000
"""

import argparse
import functools
import sys
import tempfile

import numpy as np

from . import measure

MODULE = "tests.bench.dry_run"


def real_steps(student, teacher, part, batches, settings):
    """-> seconds of each step, by the clock and of all processors (steps, 2)"""
    from mini_pkd.measure_steps import timed
    from mini_pkd.optimizer import Adam
    from mini_pkd.seeds import generator
    from mini_pkd.train import train_step

    adam, draw, normaliser = Adam(student, settings.clip), functools.partial(generator, 1), part.store.normaliser

    def step(n, indices):
        parts = part.micro_batches(indices, settings.microbatch_frames)
        train_step(student, teacher, parts, normaliser, adam, 1e-6, settings, draw, 1, n)

    step(0, batches[0])  # the memory of the next ones
    return np.array([timed(lambda n=n, b=b: step(n, b)) for n, b in enumerate(batches, start=1)])


def compare(scale, data, steps, most):
    """Rows of the table."""
    from mini_pkd import dry_run, measure_steps, warm_up
    from mini_pkd.cascade import Cascade
    from mini_pkd.corpus import epoch_batches
    from mini_pkd.estimate import flop_of_utterances
    from mini_pkd.memory import keep_freed_memory
    from mini_pkd.prepared_corpus import prepare_corpus
    from mini_pkd.seeds import generator
    from mini_pkd.transducer import Transducer

    s = scale.settings
    with tempfile.TemporaryDirectory() as folder:  # an open store outlives it
        run = Cascade(scale, data, f"{folder}/run")
        roles, symbols = dry_run.census(run)
        if run.data.is_dir():
            part = prepare_corpus(run.data, f"{folder}/features", s).train
        else:
            train = roles["train"].of(slice(2000))
            part = measure_steps.noise_part(train.frames, train.labels, symbols)
    configs = {size: scale.sizes[size].config(symbols) for size in scale.sizes}
    size_of = {model.name: model.size for model in scale.models()} | {None: None}
    pairs = list(dict.fromkeys((model.size, size_of[model.teacher]) for model in scale.models()))[:most]
    frames, labels = part.store.lengths, np.array([len(target) for target in part.targets])
    training = dry_run.Role(frames[part.indices], labels[part.indices], "")
    warm_up.ensure()
    keep_freed_memory()
    parts = dry_run.micro_batches(training, s, configs["T1"])
    paces, _, waited = measure_steps.measure(configs, pairs, s, parts)
    print(f"while it measured, a thread waited {waited:.2f} s for a core for each second of work\n")
    batches = epoch_batches(frames, s.batch_frames, s.batch_utterances, seed=1, epoch=1, indices=part.indices)[:steps]
    rows = []
    for student, teacher in pairs:
        networks = [size and Transducer(configs[size], generator(0, size, "weights")) for size in (student, teacher)]
        real = real_steps(*networks, part, batches, s).sum(axis=0)
        flop = flop_of_utterances(configs[student], teacher and configs[teacher], frames, labels, s)
        flop = sum(flop[batch].sum() for batch in batches)
        pace = paces[student, teacher]
        predicted = flop * pace["step"].mean(axis=0) + len(batches) * pace["update"]
        ratios = [f"{ratio:.2f}" for ratio in predicted / real]
        rows.append(
            [student, teacher or "-", *(f"{x:.2f}" for x in (predicted[0], real[0], predicted[1], real[1])), *ratios]
        )
        print(" ".join(rows[-1]), file=sys.stderr)
    return rows


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scale", nargs="?", default="tiny", help="(default: tiny)")
    parser.add_argument("--data", metavar="DIR", help="a corpus (default: the scale's own)")
    parser.add_argument("--steps", type=int, default=20, help="(default: 20)")
    parser.add_argument("--pairs", type=int, help="only the first so many pairs of student and teacher")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings, as of the cascade")
    arguments = parser.parse_args(argv)
    from mini_pkd import UserError
    from mini_pkd.scales import get_scale

    print(measure.heading(MODULE, argv))
    try:
        scale = get_scale(arguments.scale).override(arguments.set)
        rows = compare(scale, arguments.data, arguments.steps, arguments.pairs)
    except UserError as error:
        print(f"dry_run: {error}", file=sys.stderr)
        return 2
    head = ["student", "teacher", "predicted s", "real s", "predicted CPU s", "real CPU s", "ratio", "ratio of CPU"]
    print(measure.table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
