"""Which nodes of the lattice do paths visit, and what does leaving the others out save?  On a trained model.

  python -m tests.bench.visited runs/tiny/T1/model.npz data_small/numbers/dev

Prints the share of nodes at which a path, given the transcript, comes by with more than some probabilities, and the
CPU time of the lattice without a teacher (loss and gradients of the joint's inputs, whole part, best of five) with all
nodes and with those that gradients need.
"""

import argparse
import time

import numpy as np

from . import measure


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.visited", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a model.npz of mini_pkd.cascade")
    parser.add_argument("part", help="a folder of utterances: one part of a corpus")
    arguments = parser.parse_args(argv)

    from mini_pkd import lattice_walk
    from mini_pkd.corpus_folder import read_part
    from mini_pkd.feature_store import FeatureStore
    from mini_pkd.model_file import load_model
    from mini_pkd.prepared_corpus import Part
    from mini_pkd.tensor import no_grad

    model, normaliser, bpe, _ = load_model(arguments.model)
    store = FeatureStore.build(
        measure.REPOSITORY / "build" / "bench" / "visited", read_part(arguments.part)[0], normaliser
    )
    part, _ = Part.encode(store, bpe)
    cases = []
    with no_grad():
        for batch in [part.batch(indices) for indices in part.batches(4000, 16, shuffle=False)]:
            inputs, lengths = model.lattice_inputs(batch, batch.features)
            cases.append((tuple(t.data for t in inputs), batch.labels, np.asarray(lengths), batch.label_lengths))

    taken, original = [], lattice_walk.rows_of_nodes
    lattice_walk.rows_of_nodes = lambda probability, *rest: (
        taken.append(probability.copy()) or original(probability, *rest)
    )
    for case in cases:
        lattice_walk.walk_lattice(*case)
    lattice_walk.rows_of_nodes = original
    taken = np.concatenate(taken)

    def seconds(negligible):
        best = np.inf
        for _ in range(5):
            start = time.process_time()
            for case in cases:
                lattice_walk.walk_lattice(*case, negligible=negligible)
            best = min(best, time.process_time() - start)
        return best

    print(measure.heading("tests.bench.visited", [arguments.model, arguments.part]))
    print(f"{len(store)} utterances, {len(taken)} nodes; visited with a probability above")
    print("  ".join(f"1e-{digits}: {np.mean(taken > 10.0**-digits):.1%}" for digits in (2, 4, 6, 8, 10, 12, 16)))
    print(f"CPU ms: all nodes {1e3 * seconds(-1):.1f}, those that gradients need {1e3 * seconds(None):.1f}")


if __name__ == "__main__":
    main()
