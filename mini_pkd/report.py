"""The report: Tables 1 and 2 and Figures 2 and 3 of the paper, from `results.json` of one or several runs.

    python -m mini_pkd.report runs/small                     one run: 95 % bootstrap intervals
    python -m mini_pkd.report runs/small-0 runs/small-1 ...  the same run with several seeds: means and ranges

It reads numbers and writes text: nothing is trained or decoded here, so it may run at any time, also while
the cascade is still busy.  What is not there yet appears as "-".  Rates are fractions in the file and per
cent in the report.  Two definitions:

    compression     = 1 - parameters / parameters of T1
    relative change = (WER - WER of the reference) / WER of the reference        negative: better

With several seeds, a cell is the mean over the seeds that have the model, and a relative change is taken
between two such means.

Whether model a beats model b is decided by the paired bootstrap that the cascade stored (wer.py): "beats" and
"worse" if the 95 % interval of the difference leaves out zero, otherwise "within noise".  With several seeds
the majority of the seeds must agree, and none may say the opposite.
"""

import io
import math
import sys
from pathlib import Path
from typing import NamedTuple

from . import UserError
from .checkpoint import write_file_atomic, write_text_atomic
from .command import Parser, command
from .records import COUNT, TEXT, WORD, Each, Leaf, between, read_record

DASH = "-"  # not there (yet)
MOST_SETS = 20  # each is a column, and a panel of the figures

# What the paper found, to stand beside what we found: (sentence, model, reference), or a whole family of pairs.
PAPER_PAIRS = (
    ("S1 is better than its teacher T1, at 38 % compression", "S1", "T1"),
    ("S3 equals T1, at 52 % compression", "S3", "T1"),
    ("S5 is 10 % / 7.5 % (clean / other) worse than T1, at 64 % compression", "S5", "T1"),
    ("S6 is about 4 % / 3 % worse than T1, at 55 % compression", "S6", "T1"),
    ("S8 is about 24 % worse than T1, at 81 % compression", "S8", "T1"),
)

# Colours of Okabe and Ito, which the colour-blind can tell apart; marker and dash repeat the information.
SERIES = {
    "progressive": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    "direct": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "baseline": {"color": "#555555", "marker": "^", "linestyle": ":"},
}


# ------------------------------------------------------------------------------------- reading the runs


AMOUNT = between(0, 1e15)
# A test set without words has an infinite rate, and so a difference that is no number.
RATE = Leaf("a rate, such as 0.08,", lambda value: AMOUNT.fits(value) or value == math.inf)
DIFFERENCE = Leaf("a number", lambda value: isinstance(value, float) or between(-1e15, 1e15).fits(value))
INTERVAL = Leaf(
    "a pair of rates", lambda value: isinstance(value, list) and len(value) == 2 and all(map(RATE.fits, value))
)
RUNG = Leaf(
    "a student, or a student and its baseline,",
    lambda value: WORD.fits(value)
    or (isinstance(value, dict) and WORD.fits(value.get("student")) and WORD.fits(value.get("baseline"))),
)
RESULTS = {  # what a report needs of a results.json; the cascade writes more
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
    "ladder?": [RUNG],
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
        if len(self.test_sets) > MOST_SETS:
            raise UserError(
                f"the runs have {len(self.test_sets)} test sets, and a report has room for {MOST_SETS}; "
                "give runs with fewer."
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
        """Relative change of the mean WER over the runs that have both, or None: no such run, no errors to divide."""

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
        stored = self.mean(name, "compression")
        params, teacher = self.mean(name, "params"), self.mean("T1", "params")
        if params is None or not teacher:
            return stored
        return 1 - params / teacher


# ----------------------------------------------------------------------------------------------- tables


def table1(runs, compact=False):
    """(header, rows) of strings: for each stage the progressive, the direct and the baseline model.

    `compact` is for terminals: short headers, and the SER of all test sets in one column.
    """

    def cells(*model):
        return _model_cells(runs, *model, compact)

    rows = [["", *cells("T1", "teacher", None, None)]]
    for experiment in runs.experiments:
        for i, stage in enumerate(experiment["stages"], start=1):
            where = f"{experiment.get('number') or '?'}.{stage.get('stage') or i}"
            baseline = stage["baseline"]
            shared = stage["progressive"] == stage["direct"]  # first stage: progressive already is direct
            role = "prog. = direct" if shared else "progressive"
            rows.append([where, *cells(stage["progressive"], role, stage["teacher"], baseline)])
            if not shared:
                rows.append([where, *cells(stage["direct"], "direct", "T1", baseline)])
            rows.append([where, *cells(baseline, "baseline", None, None)])
    return ["stage", *_model_header(runs, compact)], rows


def table2(runs):
    """(header, rows): one stage from T1, at higher and higher compression, each with its baseline."""
    baselines = {stage["direct"]: stage["baseline"] for stage in runs.stages}
    ladder = runs.first.get("ladder")
    if ladder is None:
        known = [name for name in baselines if runs.compression(name) is not None]
        ladder = sorted(known, key=runs.compression)
    rungs = [(r["student"], r["baseline"]) if isinstance(r, dict) else (r, baselines.get(r)) for r in ladder]
    rows = [_model_cells(runs, "T1", "teacher", None, None)]
    for name, baseline in rungs:
        rows.append(_model_cells(runs, name, "direct", "T1", baseline))
        if baseline:
            rows.append(_model_cells(runs, baseline, "baseline", None, None))
    return _model_header(runs), rows


def _model_header(runs, compact=False):
    short = [_short(s) for s in runs.test_sets]
    both = " / ".join(short)
    return [
        *("model", "role", "from" if compact else "taught by", "params", "compr."),
        *(f"WER {s} %" for s in short),
        *(["SER %"] if compact else [f"SER {s} %" for s in short]),
        *(["vs T1 %", "vs B %"] if compact else [f"WER vs T1 %: {both}", f"vs baseline %: {both}"]),
        *(["seeds"] if runs.several else []),
    ]


def _model_cells(runs, name, role, teacher, baseline, compact=False):
    params, compression = runs.mean(name, "params"), runs.compression(name)
    return [
        *(name, role, teacher or DASH),
        DASH if params is None else f"{_three_digits(params / 1e6)} M",
        DASH if compression is None else f"{100 * compression:.0f} %",
        *(_rate_cell(runs, name, "wer", s) for s in runs.test_sets),
        *([_ser_cell(runs, name)] if compact else [_rate_cell(runs, name, "ser", s) for s in runs.test_sets]),
        _change_cell(runs, name, None if name == "T1" else "T1"),
        _change_cell(runs, name, baseline),
        *([str(len(runs.get(name, "wer")))] if runs.several else []),
    ]


def _rate_cell(runs, name, key, test_set):
    """12.3 [11.0, 13.5]: a 95 % interval; with several seeds 12.3 (11.8..12.9): the range of the seeds."""
    rates = runs.get(name, key, test_set)
    if not rates:
        return DASH
    text = f"{100 * sum(rates) / len(rates):.1f}"
    if runs.several:
        return f"{text} ({100 * min(rates):.1f}..{100 * max(rates):.1f})"
    interval = runs.get(name, f"{key}_ci95", test_set)
    if interval:
        text += f" [{100 * interval[0][0]:.1f}, {100 * interval[0][1]:.1f}]"
    return text


def _ser_cell(runs, name):
    rates = [runs.mean(name, "ser", s) for s in runs.test_sets]
    return " / ".join(DASH if rate is None else f"{100 * rate:.1f}" for rate in rates)


def _change_cell(runs, name, reference):
    changes = [runs.relative(name, reference, s) if reference else None for s in runs.test_sets]
    if all(change is None for change in changes):
        return DASH
    return " / ".join(DASH if change is None else f"{100 * change:+.1f}" for change in changes)


def _three_digits(value):
    """Three digits that count: 128, 1.28, 0.612."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _short(test_set):
    return test_set.removeprefix("test-")


def as_text(header, rows):
    """Columns aligned for a terminal.

    >>> print(as_text(["model", "WER %"], [["T1", "8.1"], ["S3", "12.4"]]))
    model  WER %
    -----  -----
    T1       8.1
    S3      12.4
    """
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]
    # words to the left; a column of numbers, dashes and blanks to the right
    right = [all(not row[c] or row[c][0] in "+-0123456789" for row in rows) for c in range(len(header))]

    def line(cells):
        padded = [f"{x:>{w}}" if r else f"{x:<{w}}" for x, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, rows)])


def as_markdown(header, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- findings


class Finding(NamedTuple):
    """Model a against model b on one test set; rates are fractions, means over the seeds.

    verdict: "beats", "within noise", "worse", or "not tested" (no paired test in the results).
    """

    a: str
    b: str
    test_set: str
    wer_a: float
    wer_b: float
    difference: float
    low: float | None  # one run: the 95 % interval; several: the smallest and largest difference of a seed
    high: float | None
    p: float | None
    votes: tuple  # how many seeds say beats, within noise, worse
    verdict: str

    def sentence(self):
        """One sentence that a program can read back; test_report.py does."""
        relation = {
            "beats": f"{self.a} beats {self.b}",
            "within noise": f"{self.a} is within noise of {self.b}",
            "worse": f"{self.a} is worse than {self.b}",
            "not tested": f"{self.a} against {self.b} was not tested",
        }[self.verdict]
        text = f"{relation} on {self.test_set}: {100 * self.wer_a:.1f} % against {100 * self.wer_b:.1f} %, "
        text += f"difference {100 * self.difference:+.1f} points"
        if self.verdict == "not tested":
            return text + "."
        if sum(self.votes) > 1:
            wins, draws, losses = self.votes
            seeds = f"{sum(self.votes)} seeds from {100 * self.low:+.1f} to {100 * self.high:+.1f}"
            return f"{text}, {seeds}: beats in {wins}, within noise in {draws}, worse in {losses}."
        text += f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return text + (f", p = {self.p:.4f}." if self.p is not None else ".")


def compared_pairs(runs):
    """The comparisons that the paper makes, in the order of Table 1; then whatever else was tested."""
    pairs = []
    for stage in runs.stages:
        progressive, direct, baseline = stage["progressive"], stage["direct"], stage["baseline"]
        pairs += [(progressive, "T1"), (progressive, baseline)]
        if direct != progressive:
            pairs += [(direct, baseline), (progressive, direct)]
    for results in runs.results:
        for test in results.get("paired") or []:
            if (test["b"], test["a"]) not in pairs:
                pairs.append((test["a"], test["b"]))
    return list(dict.fromkeys(pairs))


def findings(runs):
    """A Finding for every compared pair and test set whose models both have results."""
    tests = [_tests_by_pair(results) for results in runs.results]
    found = []
    for a, b in compared_pairs(runs):
        for test_set in runs.test_sets:
            wer_a, wer_b = runs.mean(a, "wer", test_set), runs.mean(b, "wer", test_set)
            if wer_a is None or wer_b is None:
                continue
            here = [t[a, b, test_set] for t in tests if (a, b, test_set) in t]
            if not here:
                nothing = (None, None, None, (0, 0, 0), "not tested")
                found.append(Finding(a, b, test_set, wer_a, wer_b, wer_a - wer_b, *nothing))
                continue
            wins = sum(high < 0 for _, _, high, _ in here)
            losses = sum(low > 0 for _, low, _, _ in here)
            verdict = "within noise"
            if 2 * wins > len(here) and not losses:
                verdict = "beats"
            elif 2 * losses > len(here) and not wins:
                verdict = "worse"
            differences = [difference for difference, *_ in here]
            low, high, p = here[0][1:]
            if len(here) > 1:
                low, high, p = min(differences), max(differences), None
            votes = (wins, len(here) - wins - losses, losses)
            mean = sum(differences) / len(here)
            found.append(Finding(a, b, test_set, wer_a, wer_b, mean, low, high, p, votes, verdict))
    return found


def _tests_by_pair(results):
    """{(a, b, set): (difference, low, high, p)}, each test from both sides."""
    tests = {}
    for t in results.get("paired") or []:
        difference, low, high, p = t["difference"], t["low"], t["high"], t.get("p")
        tests[t["b"], t["a"], t["set"]] = (-difference, -high, -low, p)
        tests[t["a"], t["b"], t["set"]] = (difference, low, high, p)
    return tests


def paper_beside_ours(runs, found):
    """(header, rows): what the paper reports and the same quantity of this run."""
    rows = []
    verdicts = {(f.a, f.b, f.test_set): f.verdict for f in found}
    planned = set(runs.names())
    for claim, a, b in PAPER_PAIRS:
        if a not in planned:
            rows.append([claim, f"there is no {a} at this scale"])
            continue
        parts = []
        for s in runs.test_sets:
            change = runs.relative(a, b, s)
            if change is not None:
                verdict = verdicts.get((a, b, s), "not tested")
                parts.append(f"{100 * change:+.1f} % on {_short(s)} ({verdict})")
        compression = runs.compression(a)
        where = f", at {100 * compression:.0f} % compression" if parts and compression is not None else ""
        rows.append([claim, f"{a} against {b}: {', '.join(parts)}{where}" if parts else DASH])
    students = dict.fromkeys((s[role], s["baseline"]) for s in runs.stages for role in ("progressive", "direct"))
    rivals = [(s["progressive"], s["direct"]) for s in runs.stages if s["progressive"] != s["direct"]]
    rows.append(["every student is better than its baseline", _tally(runs, found, students)])
    rows.append(["the progressive student is better than the direct one", _tally(runs, found, rivals)])
    return ["the paper", "this run"], rows


def _tally(runs, found, pairs):
    """'lower WER in 3 of 4 pairs on clean (2 beyond noise; 0 worse beyond noise), ...'"""
    parts = []
    for s in runs.test_sets:
        here = [f for f in found if f.test_set == s and (f.a, f.b) in pairs]
        if here:
            lower, beats, worse = (
                sum(f.wer_a < f.wer_b for f in here),
                sum(f.verdict == "beats" for f in here),
                sum(f.verdict == "worse" for f in here),
            )
            parts.append(
                f"lower WER in {lower} of {len(here)} pairs on {_short(s)} "
                f"({beats} beyond noise; {worse} worse beyond noise)"
            )
    return ", ".join(parts) or DASH


# ---------------------------------------------------------------------------------------------- figures


def draw_figures(runs, folder):
    """figure2.png, figure3.png, ... for experiments 1, 2, ...: (paths, a line that says why not, or None)."""
    try:
        from matplotlib.figure import Figure  # no pyplot: no global state, no window system
    except ImportError:
        return [], "No figures: matplotlib is not installed (pip install matplotlib), the tables are complete."
    paths = []
    for number, experiment in enumerate(runs.experiments, start=1):
        figure = Figure(figsize=(5.2 * max(1, len(runs.test_sets)), 4.2), dpi=80, layout="constrained")
        drawn = False
        for column, test_set in enumerate(runs.test_sets, start=1):
            axes = figure.add_subplot(1, len(runs.test_sets), column)
            drawn |= _draw_panel(axes, runs, experiment, test_set)
        if not drawn:
            continue
        which = experiment.get("number") or number
        bars = f"bars: range of {len(runs.seeds)} seeds" if runs.several else "bars: 95 % interval"
        figure.suptitle(f"Experiment {which}, {runs.first['scale']}: WER against compression ({bars})", fontsize=11)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        path = Path(folder) / f"figure{number + 1}.png"
        write_file_atomic(path, lambda file, picture=picture: file.write(picture.getvalue()))
        paths.append(path)
    return paths, None


def _draw_panel(axes, runs, experiment, test_set):
    """One test set: three curves that begin at T1.  Returns whether there was anything to draw."""
    ends = []
    for role, style in SERIES.items():
        names = ["T1", *(stage[role] for stage in experiment["stages"])]
        points = []
        for name in names:
            wers, compression = runs.get(name, "wer", test_set), runs.compression(name)
            if wers and compression is not None and math.isfinite(sum(wers)):
                points.append((name, 100 * compression, 100 * sum(wers) / len(wers), *_bar(runs, name, test_set)))
        if [name for name, *_ in points] in ([], ["T1"]):
            continue
        _, x, y, below, above = zip(*points, strict=True)
        shift = {"progressive": 0.0, "direct": 1.4, "baseline": -1.4}[role]  # or the bars would hide each other
        x = [x_i + (shift if x_i else 0) for x_i in x]
        axes.errorbar(x, y, yerr=[below, above], capsize=2, elinewidth=0.8, linewidth=1.6, markersize=6, **style)
        ends.append((y[-1], x[-1], role))
        for i in range(1, len(points)):
            if role == "direct" and points[i][0] == experiment["stages"][0]["progressive"]:
                continue  # that point already has its name: it is the progressive curve's as well
            # the name: left of the baseline, right of the direct, above the bar of the progressive student
            top = y[i] + above[i] if role == "progressive" else y[i]
            offset, side = {
                "progressive": ((0, 3), "center"),
                "direct": ((6, -3), "left"),
                "baseline": ((-6, -3), "right"),
            }[role]
            axes.annotate(
                points[i][0],
                (x[i], top),
                xytext=offset,
                textcoords="offset points",
                ha=side,
                color=style["color"],
                fontsize=8,
            )
    teacher = runs.mean("T1", "wer", test_set)
    if teacher is not None and math.isfinite(teacher):
        axes.axhline(100 * teacher, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.annotate("T1", (0, 100 * teacher), xytext=(-7, 4), textcoords="offset points", fontsize=8, ha="right")
    axes.set_title(test_set, fontsize=10)
    axes.set_xlabel("compression against T1 (%), curves set apart a little", fontsize=9)
    axes.set_ylabel("WER (%)")
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.08, y=0.12)
    _label_ends(axes, ends)
    return bool(ends)


def _bar(runs, name, test_set):
    """(below, above): the lengths of the error bar in points of WER."""
    wers = runs.get(name, "wer", test_set)
    mean = sum(wers) / len(wers)
    low, high = min(wers), max(wers)
    if not runs.several:
        low, high = (runs.get(name, "wer_ci95", test_set) or [(mean, mean)])[0]
        low, high = (bound if math.isfinite(bound) else mean for bound in (low, high))
    return 100 * max(0.0, mean - low), 100 * max(0.0, high - mean)


def _label_ends(axes, ends):
    """The curves' names at the right edge, at the height of their ends but never on top of each other."""
    if not ends:
        return
    low, high = axes.get_ylim()
    gap = 0.07 * (high - low)
    heights = []
    for y, *_ in sorted(ends):
        heights.append(max(y, heights[-1] + gap) if heights else y)
    for height, (y, x, role) in zip(heights, sorted(ends), strict=True):
        color = SERIES[role]["color"]
        axes.annotate(
            role,
            (x, y),
            xytext=(1.03, height),
            textcoords=("axes fraction", "data"),
            va="center",
            color=color,
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5},
        )


# ------------------------------------------------------------------------------------------- the report


def write_report(folders, out=None):
    """results.json of each folder -> out/report.md and figures beside it; returns Table 1 for the terminal.

    `out` is the first folder unless told otherwise.
    """
    runs = Runs([read_results(folder) for folder in folders])
    out = Path(out) if out is not None else results_path(folders[0]).parent
    pictures, remark = draw_figures(runs, out)
    path = out / "report.md"
    write_text_atomic(path, report_text(runs, pictures, remark))
    legend = f"Rates in %; pairs are {' / '.join(runs.test_sets)}; vs: relative change of the WER, negative is better."
    lines = [as_text(*table1(runs, compact=True)), legend, remark, f"The whole report: {path}"]
    return "\n".join(line for line in lines if line)


def report_text(runs, pictures=(), remark=None):
    """The whole of report.md."""
    first, found = runs.first, findings(runs)
    parts = [f"# {first['scale']}: multi-stage progressive compression of a conformer transducer"]
    seeds = f"mean over {len(runs.seeds)} seeds ({', '.join(map(str, runs.seeds))})"
    facts = [seeds if runs.several else f"seed {first['seed']}"]
    for key, text in (("command", "`{}`"), ("machine", "{}")):
        if first.get(key):  # a command may name a path that is not UTF-8, and the report is UTF-8
            line = " ".join(first[key].split()).encode("utf-8", "backslashreplace").decode("utf-8")
            facts.append(text.format(line))
    times = [r["seconds"] for r in runs.results if r.get("seconds") is not None]
    if times:
        whose = "all models of all seeds" if runs.several else "all models"
        facts.append(f"{_duration(sum(times))} of training and decoding, added up over {whose}")
    parts.append("; ".join(facts) + ".")
    missing = [name for name in runs.names() if not runs.finished(name)]
    if missing:
        parts.append(f"Not there yet, shown as \"{DASH}\": {', '.join(missing)}.")

    spread = "in parentheses the range of the seeds" if runs.several else "in brackets 95 % bootstrap intervals"
    caption = (
        f"Rates in per cent, {spread}. WER and SER: lower is better. Compression is 1 - parameters / parameters "
        "of T1. The last columns are relative changes of the WER, negative is better: against T1, and against "
        "the baseline of the same size that had no teacher."
    )
    parts += ["## Table 1: progressive, direct, baseline", caption, as_markdown(*table1(runs))]
    parts += ["## Table 2: one stage from T1, higher and higher compression", as_markdown(*table2(runs))]

    if pictures:
        parts.append("## Figures 2 and 3: WER against compression")
        parts += [f"![WER against compression, {Path(p).stem}]({Path(p).name})" for p in pictures]
    if remark:
        parts += ["## Figures 2 and 3", remark]

    parts.append("## What the numbers say")
    tested = [f for f in found if f.verdict != "not tested"]
    if tested:
        rule = (
            "in the majority of the seeds, and in none the opposite" if runs.several else "for this one seed"
        )
        parts.append(
            f"A model beats another (or is worse) when the paired 95 % bootstrap interval of the difference of "
            f"their WERs leaves out zero {rule}; else it is within noise. There are {len(tested)} comparisons; "
            "one in twenty would look like a difference by chance alone, and the intervals know the chance of "
            "the test set, not that of another training run."
        )
    parts.append("\n".join(f"- {f.sentence()}" for f in found) or "No two models to compare yet.")

    parts += ["## The paper beside this run", as_markdown(*paper_beside_ours(runs, found))]
    parts.append(
        "The paper's numbers are for LibriSpeech, 128 M parameters and 10026 units (arXiv 2210.00169); changes are "
        "relative. Widths, depths, schedules and epochs of the students are this project's choice."
    )
    header, rows = training_table(runs)
    if rows:
        parts += ["## Training", as_markdown(header, rows)]
    return "\n\n".join(parts) + "\n"


def training_table(runs):
    """(header, rows): updates, time and the best dev WER of every finished model."""
    rows = []
    for name in runs.names():
        if runs.finished(name):
            updates, seconds, dev = (runs.mean(name, key) for key in ("updates", "seconds", "best_dev_wer"))
            rows.append(
                [
                    name,
                    DASH if updates is None else f"{updates:.0f}",
                    DASH if seconds is None else _duration(seconds),
                    DASH if dev is None else f"{100 * dev:.1f}",
                ]
            )
    return ["model", "updates", "time", "best dev WER %"], rows


def _duration(seconds):
    """
    >>> _duration(61), _duration(512.3), _duration(7265)
    ('61 s', '8 min 32 s', '2 h 1 min')
    """
    seconds = 0 if not math.isfinite(seconds) else round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


@command("report")
def main(arguments=None):
    parser = Parser("report", description="Tables 1 and 2 and Figures 2 and 3 from results.json.")
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", help="a run; several: same scale, other seeds")
    parser.add_argument("--out", help="where report.md and the figures go (default: the first RUN_DIR)")
    options = parser.parse_args(arguments)
    print(write_report(options.folders, options.out))


if __name__ == "__main__":
    sys.exit(main())
