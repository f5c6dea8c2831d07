"""Finished runs as numbers: `results.json` of one run, or of the same run with several seeds.

    runs = read_runs(["runs/small"])                    one seed, or those of `cascade --seeds`, or several such folders
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
MODEL = {
    "name": WORD,
    **{"params?": between(1, 1e15), "compression?": between(-1e15, 1)},
    **{"wer?": Each(RATE), "ser?": Each(RATE), "wer_ci95?": Each(INTERVAL), "ser_ci95?": Each(INTERVAL)},
    **{"updates?": AMOUNT, "seconds?": AMOUNT, "best_dev_wer?": RATE},
}
RELATIVE = Leaf(  # value and interval; infinite where the other model made no error
    "a list of three numbers",
    lambda value: isinstance(value, list) and len(value) == 3 and all(map(DIFFERENCE.fits, value)),
)
TEST = {
    **{"a": WORD, "b": WORD, "set": WORD, "difference": DIFFERENCE, "low": DIFFERENCE, "high": DIFFERENCE, "p?": RATE},
    **{"relative?": RELATIVE, "differences?": Each(DIFFERENCE)},  # the latter: {seed: ...}
}
RESULTS = {
    "scale": WORD,
    "seed": COUNT,
    "command?": TEXT,
    "machine?": TEXT,
    "seconds?": AMOUNT,
    "test_sets?": [WORD],
    "models": [MODEL],
    "experiments": [
        {
            "number?": COUNT,
            "stages": [{"stage?": COUNT, "teacher": WORD, "progressive": WORD, "direct": WORD, "baseline": WORD}],
        }
    ],
    "paired?": [TEST],
    "speakers?": [{"set": WORD, "speaker": TEXT, "words": COUNT, "wer": Each(RATE)}],
}
SEVERAL = {"runs?": [Leaf("a run", lambda value: True)]}  # of several seeds: each run, to be checked as such
POOLED = {"models": [MODEL], "paired": [TEST], "runs": [RESULTS]}  # ... of which a report reads this


def read_results(folder):
    """The results.json of a run (its folder, or the file itself) as a record, or a UserError.

    Of several seeds it is a record with "models", "paired" and "runs": what is pooled, and each seed's own record.
    """
    path = results_path(folder)
    advice = "give the folder of a run of mini_pkd.cascade, or start that run again, which writes the file anew"
    several = read_record(path, SEVERAL, advice)["runs"]
    results = read_record(path, POOLED if several else RESULTS, advice)
    for run in [results, *(results["runs"] if several else [])]:
        for kind, names in (
            ("model", [m["name"] for m in run["models"]]),
            ("test set", run.get("test_sets") or []),
        ):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise UserError(f"{path} holds the {kind} {twice[0]} twice; {advice}.")
    return results


def read_runs(folders):
    """The Runs of these folders; pooled numbers are those of a single folder that has them."""
    records = [read_results(folder) for folder in folders]
    pooled = records[0] if len(records) == 1 and "runs" in records[0] else None
    return Runs([run for record in records for run in record.get("runs") or [record]], pooled)


def results_path(folder):
    path = Path(folder)
    return path if path.suffix == ".json" else path / "results.json"


# --- one or several runs -------------------------------------------------------------------------


class Runs:
    """Several runs of the same scale with different seeds, read as one.

    pooled: the record of what the cascade has computed over all seeds together; None: nothing
    """

    def __init__(self, results, pooled=None):
        self.results, self.pooled = results, pooled
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
        listed = [name for r in results for name in r.get("test_sets") or ()]
        self.test_sets = list(dict.fromkeys(listed or found))
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

    def interval(self, name, key, test_set):
        """(low, high) of a rate: over seeds and utterances, or of the only run; None if there is none."""
        models = self.pooled["models"] if self.pooled else [] if self.several else self.first["models"]
        stored = [(m.get(f"{key}_ci95") or {}).get(test_set) for m in models if m["name"] == name]
        return stored[0] if stored else None

    def tests(self):
        """The paired tests to judge by: one list over all seeds, or else one list for each run."""
        return [source.get("paired") or [] for source in ([self.pooled] if self.pooled else self.results)]

    def speakers(self, test_set):
        """[(speaker, reference words, {model: mean WER})] of a test set."""
        found = {}
        for r in self.results:
            for s in r.get("speakers") or ():
                if s["set"] == test_set:
                    words, rates = found.setdefault(s["speaker"], (s["words"], {}))
                    for name, rate in s["wer"].items():
                        rates.setdefault(name, []).append(rate)
        return [
            (speaker, words, {name: sum(of) / len(of) for name, of in rates.items()})
            for speaker, (words, rates) in found.items()
        ]

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
