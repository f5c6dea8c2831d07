"""Error rates on the development sets, by which everything is chosen: WER % of every model of a run, beam 8.

  python -m tests.bench.dev_scores data_small/numbers runs/tiny/seed0 runs/tiny/seed1

A corpus has dev, of voices that training knows, and may have dev-other, of voices that it never hears.  Training scores
both together, greedily; here each is a column.
"""

import argparse
from pathlib import Path

import numpy as np

from . import measure


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.dev_scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("corpus", help="a folder with dev, and perhaps dev-other")
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a folder with one folder for each model")
    arguments = parser.parse_args(argv)

    from mini_pkd import wer
    from mini_pkd.corpus_folder import read_part
    from mini_pkd.fast_beam import beam_search
    from mini_pkd.feature_store import FeatureStore
    from mini_pkd.model_file import load_model

    parts = [part for part in ("dev", "dev-other") if (Path(arguments.corpus) / part).is_dir()]
    build = measure.REPOSITORY / "build" / "bench"
    stores = {p: FeatureStore.build(build / f"scores-{p}", read_part(Path(arguments.corpus) / p)[0]) for p in parts}
    print(measure.heading("tests.bench.dev_scores", [arguments.corpus, *arguments.runs]))
    for path in sorted(file for run in arguments.runs for file in Path(run).glob("*/model.npz")):
        model, normaliser, bpe, _ = load_model(path)
        rates = []
        for part, store in stores.items():
            store.normaliser, heard = normaliser, {}
            order = np.argsort(store.lengths, kind="stable")
            for indices in np.array_split(order, -(-len(order) // 32)):
                enc, lengths = model.encode(np.concatenate([store[i] for i in indices]), store.lengths[indices])
                for i, best in zip(indices, beam_search(model, enc, lengths, 8), strict=True):
                    heard[store.ids[i]] = bpe.decode(best[0].labels)
            rates.append(f"{part} {100 * wer.score(dict(zip(store.ids, store.texts, strict=True)), heard).wer:5.2f}")
        print(f"{path.parent}  {'  '.join(rates)}", flush=True)


if __name__ == "__main__":
    main()
