"""Is a model of one run better than its namesake of another?  Paired tests over seeds and utterances.

  python -m tests.bench.compare_runs data_small/numbers runs/paths runs/tiny

Both are runs of `mini_pkd.cascade --seeds N` on this corpus, with the same seeds and other settings.  Prints, per test
set, the WER of the first minus that of the second in points, with its 95 % interval, in per cent of the second, and p.
"""

import argparse
from pathlib import Path

from . import measure


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.compare_runs", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("corpus", help="the folder with the test sets")
    parser.add_argument("a", metavar="RUN_A", help="a run's folder, with seed0, seed1, ...")
    parser.add_argument("b", metavar="RUN_B", help="another one")
    arguments = parser.parse_args(argv)

    from mini_pkd import wer
    from mini_pkd.corpus_folder import read_part
    from mini_pkd.transcript_file import read_transcript

    print(measure.heading("tests.bench.compare_runs", [arguments.corpus, arguments.a, arguments.b]))
    names = sorted(path.parent.name for path in Path(arguments.a, "seed0").glob("*/model.npz"))
    for test_set in ("test-clean", "test-other"):
        references = {u.id: u.text for u in read_part(Path(arguments.corpus) / test_set)[0]}
        for name in names:
            a, b = (
                [
                    wer.score(references, read_transcript(path))
                    for path in sorted(Path(run).glob(f"seed*/{name}/{test_set}.txt"))
                ]
                for run in (arguments.a, arguments.b)
            )
            test = wer.paired_test(a, b)
            print(
                f"{test_set}  {name}  {100 * test.difference:+5.1f} [{100 * test.low:+5.1f}, {100 * test.high:+5.1f}]"
                f"  {100 * test.relative[0]:+4.0f} %  p = {test.p_value:.4f}  ({len(a)} seeds)"
            )


if __name__ == "__main__":
    main()
