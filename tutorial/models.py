"""The trained models that come with the tutorial: those of the default run, T1, S1, B1, S3, S2 and B2.

    tutorial/models/results.json              the numbers behind the tables
    tutorial/models/T1/model.npz              the weights, float32
    tutorial/models/T1/test-clean.txt         what it understood

`python -m tutorial.build --models runs/tiny` copies them from a run of `python -m mini_pkd.cascade`.
"""

import shutil
from pathlib import Path

from mini_pkd import UserError
from mini_pkd.results import Runs, read_results, read_runs
from mini_pkd.transcribe import Recogniser

FOLDER = Path(__file__).parent / "models"
SEEDS = Path(__file__).parents[1] / "results" / "tiny"
FILES = ("model.npz", "result.json", "test-clean.txt", "test-other.txt")


def _there(path):
    if not path.exists():
        raise UserError(
            f"tutorial/{path.relative_to(FOLDER.parent).as_posix()} is not there; make the models, in the folder of "
            "the project, with `python -m mini_pkd.cascade && python -m tutorial.build --models runs/tiny`."
        )
    return path


def load(name, beam=8):
    """ "T1" -> Recogniser; its .model is the Transducer, beside it stand .normaliser and .bpe.  beam 1 is greedy."""
    return Recogniser.load(_there(FOLDER / name / "model.npz"), beam)


def megabytes(name):
    """The size of its file."""
    return _there(FOLDER / name / "model.npz").stat().st_size / 1e6


def runs():
    """The numbers of the default run, as report.py and figures.py take them."""
    return Runs([read_results(_there(FOLDER / "results.json").parent)])


def seeds():
    """The numbers of the same run with several seeds, results/tiny of the project."""
    return read_runs([SEEDS])


def decoded(name, test_set="test-clean"):
    """The path of what a model understood, for transcript_file.read_transcript."""
    return _there(FOLDER / name / f"{test_set}.txt")


def copy_from(run):
    """What the notebooks need of a finished run -> FOLDER; what was there before goes."""
    run = Path(run)
    names = [model["name"] for model in read_results(run)["models"]]
    missing = [str(run / name / file) for name in names for file in FILES if not (run / name / file).exists()]
    if missing:
        raise UserError(f"{missing[0]} is not there; finish the run with `python -m mini_pkd.cascade`.")
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in names:
        (FOLDER / name).mkdir(parents=True)
        for file in FILES:
            shutil.copyfile(run / name / file, FOLDER / name / file)
    shutil.copyfile(run / "results.json", FOLDER / "results.json")
    return names
