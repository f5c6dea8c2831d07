"""Which nodes of the lattice do paths visit, and what does leaving the others out save?  On a trained model.

  python -m tests.bench.visited runs/tiny/T1/model.npz data_small/numbers/dev
  python -m tests.bench.visited runs/tiny/S3/model.npz data_small/numbers/dev --teacher runs/tiny/T1/model.npz
  python -m tests.bench.visited runs/tiny/S3/model.npz data_small/numbers/dev --teacher runs/tiny/T1/model.npz \\
      --join 6 --full

Prints the share of nodes at which a path, given the transcript, comes by with more than some probabilities, and the
CPU time of the lattice (losses and gradients of the joint's inputs): without a teacher with all nodes and with those
that gradients need; with one for kl_weighting=nodes and paths, and then for the whole step, dropout and all, as well.
A time is the median of some rounds over the batches; what is compared takes turns.

--join N   N utterances one after the other are one: lattices as long as those of real speech.
--full     These lattices at the price of `full`: the joint is filled up with zeros to the widths of its S1 and T1, and
           with symbols that never come to V = 10026.  So paths go where they went.  The step is then the lattice's time
           and that of full's networks with random weights, over the same features.
"""

import argparse
import dataclasses
import sys
import time

import numpy as np

from . import measure

STUDENT, TEACHER = "79", "T1"  # sizes of full


def joined(batch, count):
    """The same rows and labels, as utterances of `count` utterances each."""
    starts = np.arange(0, len(batch.ids), count)
    sums = {name: np.add.reduceat(getattr(batch, name), starts) for name in ("lengths", "label_lengths")}
    return dataclasses.replace(batch, ids=batch.ids[::count], **sums)


def filled_up(network, V, J, rng):
    """(enc, pred, table, bias) of V symbols and width J, with the same probabilities to 1e-9."""
    enc, pred, table, bias = network
    wide = rng.standard_normal((V, J), dtype=np.float32)
    wide[:, : table.shape[1]] = 0
    wide[: len(table), : table.shape[1]] = table
    narrow = [np.pad(rows, ((0, 0), (0, J - rows.shape[1]))) for rows in (enc, pred)]
    return (*narrow, wide, np.pad(bias, (0, V - len(bias)), constant_values=bias.min() - 30))


def medians(rounds, **functions):
    """{name: median CPU ms} of functions that take turns; the first round does not count."""
    spent = {name: [] for name in functions}
    for _ in range(1 + rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            spent[name].append(1e3 * (time.process_time() - start))
    return {name: measure.median(times[1:]) for name, times in spent.items()}


def in_words(times):
    return ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in times.items())


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.visited", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="a model.npz of mini_pkd.cascade; with --teacher the student")
    add("part", help="a folder of utterances: one part of a corpus")
    add("--teacher", help="another model.npz with the same symbols")
    add("--join", type=int, default=1, metavar="N", help="so many utterances make one (default: 1)")
    add("--full", action="store_true", help="the first batch alone, at full's V and joint widths")
    add("--rounds", type=int, default=5, help="(default: 5)")
    arguments = parser.parse_args(argv)

    from mini_pkd import lattice_walk
    from mini_pkd.corpus_folder import read_part
    from mini_pkd.feature_store import FeatureStore
    from mini_pkd.layers import DropoutKeys
    from mini_pkd.model_file import load_model
    from mini_pkd.prepared_corpus import Part
    from mini_pkd.scales import FULL, TINY
    from mini_pkd.tensor import no_grad
    from mini_pkd.train import lattice_loss
    from mini_pkd.transducer import Transducer

    rng = np.random.default_rng(0)
    model, normaliser, bpe, _ = load_model(arguments.model)
    teacher = load_model(arguments.teacher)[0] if arguments.teacher else None
    store = FeatureStore.build(
        measure.REPOSITORY / "build" / "bench" / "visited", read_part(arguments.part)[0], normaliser
    )
    part, _ = Part.encode(store, bpe)
    batches = [joined(part.batch(indices), arguments.join) for indices in part.batches(4000, 16, shuffle=False)]
    if arguments.full:
        batches = batches[len(batches) // 2 :][:1]

    def lattices(network, size):
        for batch in batches:
            with no_grad():
                inputs, lengths = network.lattice_inputs(batch, batch.features)
            arrays = tuple(tensor.data for tensor in inputs)
            if arguments.full:
                arrays = filled_up(arrays, FULL.settings.vocab_size, FULL.sizes[size].joint_width, rng)
            yield arrays, batch.labels, np.asarray(lengths), batch.label_lengths

    cases = [*lattices(model, STUDENT)]
    taught = [arrays for arrays, *_ in lattices(teacher, TEACHER)] if teacher else None
    taken, original = [], lattice_walk.rows_of_nodes
    lattice_walk.rows_of_nodes = lambda probability, *rest: (
        taken.append(probability.copy()) or original(probability, *rest)
    )
    for case in cases:
        lattice_walk.walk_lattice(*case)
    lattice_walk.rows_of_nodes = original
    taken = np.concatenate(taken)
    frames, columns = (np.concatenate(counts) for counts in zip(*((T, U + 1) for _, _, T, U in cases), strict=True))
    V, J = cases[0][0][2].shape

    def alone(negligible):
        return lambda: [lattice_walk.walk_lattice(*case, negligible=negligible) for case in cases]

    def with_teacher(**options):
        pairs = list(zip(cases, taught, strict=True))
        return lambda: [lattice_walk.walk_lattice(*c, teacher=t, kl_weight=1.0, **options) for c, t in pairs]

    def step(kl_weighting):
        settings = dataclasses.replace(TINY.settings, kl_weighting=kl_weighting)

        def run():
            for batch in batches:
                keys = DropoutKeys(settings.dropout, rng)
                lattice_loss(model, teacher, batch, batch.features, settings, keys)[0].backward()

        return run

    def encoders_and_predictors():
        student, teacher = (  # of full, with random weights: they cost the same
            Transducer(FULL.sizes[size].config(FULL.settings.vocab_size), rng) for size in (STUDENT, TEACHER)
        )

        def run():
            for batch in batches:
                with no_grad():
                    teacher.lattice_inputs(batch, batch.features)
                (enc, pred, *_), _ = student.lattice_inputs(batch, batch.features, DropoutKeys(0.1, rng))
                for rows in (enc, pred):
                    rows.backward(np.ones_like(rows.data))

        return run

    print(measure.heading("tests.bench.visited", sys.argv[1:] if argv is None else argv))
    print(
        f"{len(frames)} lattices of {np.median(frames):.0f} x {np.median(columns):.0f} (medians), {len(taken)} nodes, "
        f"V = {V}, J = {J}; visited with a probability above"
    )
    print("  ".join(f"1e-{digits}: {np.mean(taken > 10.0**-digits):.1%}" for digits in (2, 4, 6, 8, 10, 12, 16)))
    compared = {"all nodes": alone(-1), "those that gradients need": alone(None)}
    if teacher:
        compared |= {f"with a teacher, {each}": with_teacher(kl_weighting=each) for each in ("nodes", "paths")}
    print(f"CPU ms of the lattice: {in_words(medians(arguments.rounds, **compared))}")
    if teacher and arguments.full:
        both = medians(arguments.rounds, both=encoders_and_predictors())
        print(f"... of full's encoders and predictors: {in_words(both)}")
    elif teacher:
        print(f"... of a step: {in_words(medians(arguments.rounds, nodes=step('nodes'), paths=step('paths')))}")


if __name__ == "__main__":
    main()
