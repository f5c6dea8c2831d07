"""Finished runs as numbers: `results.json` of one run, or of the same run with several seeds.

    runs = Runs([read_results("runs/small-0"), read_results("runs/small-1")])
    runs.mean("S3", "wer", "test-clean")                a fraction, or None if no run has it yet

The files are read and checked once, here; tables, findings and figures ask a `Runs` and never a file.  A model may be
missing, because a report may be asked for while the cascade is still busy.
"""

import math
from pathlib import Path

from . import UserError
from .records import COUNT, TEXT, WORD, Each, Leaf, between, read_record

MOST_SETS = 20  # each is a column of the tables and a panel of the figures
MOST_STAGES = 20  # of one experiment: each is a column of Figure 1

# --- what a report needs of a results.json; the cascade writes more ------------------------------

AMOUNT = between(0, 1e15)
# A test set without words has an infinite rate, and then a difference that is not a number.
RATE = Leaf("a rate, such as 0.08,", lambda value: AMOUNT.fits(value) or value == math.inf)
DIFFERENCE = Leaf("a number", lambda value: isinstance(value, float) or between(-1e15, 1e15).fits(value))
INTERVAL = Leaf(
    "a pair of rates", lambda value: isinstance(value, list) and len(value) == 2 and all(map(RATE.fits, value))
)
RESULTS = {
    "scale": WORD,
    "seed": COUNT,
    "command?": TEXT,
    "machine?": TEXT,
    "seconds?": AMOUNT,
    "test_sets?": [WORD],
    "models": [
        {
            "name": WORD,
            **{"params?": between(1, 1e15), "compression?": between(-1e15, 1)},
            **{"wer?": Each(RATE), "ser?": Each(RATE), "wer_ci95?": Each(INTERVAL), "ser_ci95?": Each(INTERVAL)},
            **{"updates?": AMOUNT, "seconds?": AMOUNT, "best_dev_wer?": RATE},
        }
    ],
    "experiments": [
        {
            "number?": COUNT,
            "stages": [{"stage?": COUNT, "teacher": WORD, "progressive": WORD, "direct": WORD, "baseline": WORD}],
        }
    ],
    "paired?": [
        {"a": WORD, "b": WORD, "set": WORD, "difference": DIFFERENCE, "low": DIFFERENCE, "high": DIFFERENCE, "p?": RATE}
    ],
}


def read_results(folder):
    """The results.json of a run (its folder, or the file itself) as a record, or a UserError."""
    path = results_path(folder)
    advice = "give the folder of a run of mini_pkd.cascade, or start that run again, which writes the file anew"
    results = read_record(path, RESULTS, advice)
    for kind, names in (("model", [m["name"] for m in results["models"]]), ("test set", results["test_sets"] or [])):
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise UserError(f"{path} holds the {kind} {twice[0]} twice; {advice}.")
    return results


def results_path(folder):
    path = Path(folder)
    return path if path.suffix == ".json" else path / "results.json"


# --- one or several runs -------------------------------------------------------------------------


class Runs:
    """Several runs of the same scale with different seeds, read as one."""

    def __init__(self, results):
        self.results = results
        self.first = results[0]
        for other in results[1:]:
            if other["scale"] != self.first["scale"]:
                raise UserError(
                    f"the runs have different scales, {self.first['scale']} and {other['scale']}; "
                    "give runs that differ in the seed only."
                )
        self.seeds = [r["seed"] for r in results]
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(
                f"the runs' seeds are {', '.join(map(str, self.seeds))}; give each seed once, "
                "or a run would count twice in the mean."
            )
        self.models = [{m["name"]: m for m in r["models"]} for r in results]  # one dictionary per run
        self.experiments = self.first["experiments"]
        self.stages = [stage for e in self.experiments for stage in e["stages"]]
        found = [name for models in self.models for m in models.values() for name in m.get("wer") or {}]
        self.test_sets = list(self.first.get("test_sets") or dict.fromkeys(found))
        longest = max([0, *(len(e["stages"]) for e in self.experiments)])
        for count, what, most in (
            (len(self.test_sets), "test sets", MOST_SETS),
            (longest, "stages in one experiment", MOST_STAGES),
        ):
            if count > most:
                raise UserError(
                    f"the runs have {count} {what}, and a report has room for {most}; give runs with fewer."
                )

    @property
    def several(self):
        return len(self.results) > 1

    def get(self, name, key, test_set=None):
        """The values of one number of one model: a list with one entry per run that has it."""
        values = []
        for models in self.models:
            value = models.get(name, {}).get(key)
            if test_set is not None:
                value = (value or {}).get(test_set)
            if value is not None:
                values.append(value)
        return values

    def mean(self, name, key, test_set=None):
        values = self.get(name, key, test_set)
        return sum(values) / len(values) if values else None

    def relative(self, name, reference, test_set):
        """Relative change of the mean WER over the runs that have both; None if none has, or nothing to divide by."""

        def rate(models, model):
            return (models.get(model, {}).get("wer") or {}).get(test_set)

        rates = [(rate(models, name), rate(models, reference)) for models in self.models]
        both = [pair for pair in rates if None not in pair]
        wer, base = (sum(column) for column in zip(*both, strict=True)) if both else (0, 0)
        return wer / base - 1 if base else None

    def finished(self, name):
        return any(self.get(name, "wer"))

    def names(self):
        """Every model of the experiments once, T1 first."""
        names = ["T1"]
        for stage in self.stages:
            names += [stage["progressive"], stage["direct"], stage["baseline"]]
        return list(dict.fromkeys(names))

    def compression(self, name):
        """1 - parameters / parameters of T1, or what the file says while one of the two is missing."""
        stored = self.mean(name, "compression")
        params, teacher = self.mean(name, "params"), self.mean("T1", "params")
        if params is None or not teacher:
            return stored
        return 1 - params / teacher
