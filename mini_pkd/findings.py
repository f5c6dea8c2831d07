"""Findings: which model beats which, in sentences, and what the paper found beside what this run found.

Whether model a beats model b is decided by the paired bootstrap that the cascade stored (wer.py): "beats" or "worse" if
the 95 % interval of the difference leaves out zero, otherwise "within noise".  Of several seeds trained by one command
it is the bootstrap over seeds and utterances.  Runs that only the report has brought together have no such test: then
the majority of the seeds must agree, and none may say the opposite.
"""

from typing import NamedTuple

from .tables import DASH, percent_cell, short_name, size_cell

# What the paper says of single models: (sentence, model, reference).  What it says of all of them: paper_beside_ours.
PAPER_PAIRS = (
    ("S1 is better than its teacher T1, at 38 % compression", "S1", "T1"),
    ("S3 equals T1, at 52 % compression", "S3", "T1"),
    ("S5 is 10 % / 7.5 % (clean / other) worse than T1, at 64 % compression", "S5", "T1"),
    ("S6 is about 4 % / 3 % worse than T1, at 55 % compression", "S6", "T1"),
    ("S8 is about 24 % worse than T1, at 81 % compression", "S8", "T1"),
)


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
    low: float | None  # the 95 % interval; by votes: the smallest and largest difference of a seed
    high: float | None
    p: float | None
    votes: tuple  # how many tests say beats, within noise, worse; one test: of the run, or over all seeds
    verdict: str
    of_seeds: tuple = ()  # each seed's difference, where one test is over all seeds

    def sentence(self):
        """One sentence that a program can read back; test_findings.py does."""
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
        text += f", p = {self.p:.4f}" if self.p is not None else ""
        return text + (f"; seeds {', '.join(f'{100 * d:+.1f}' for d in self.of_seeds)}." if self.of_seeds else ".")


def findings(runs):
    """A Finding for every compared pair and test set whose models both have results."""
    tests = [_tests_by_pair(paired) for paired in runs.tests()]
    found = []
    for a, b in compared_pairs(runs):
        for test_set in runs.test_sets:
            wer_a, wer_b = runs.mean(a, "wer", test_set), runs.mean(b, "wer", test_set)
            if wer_a is not None and wer_b is not None:
                here = [t[a, b, test_set] for t in tests if (a, b, test_set) in t]
                of_seeds = here[0][4] if runs.several and len(here) == 1 else ()
                found.append(Finding(a, b, test_set, wer_a, wer_b, *_judged(here, wer_a - wer_b), of_seeds))
    return found


def compared_pairs(runs):
    """The comparisons that the paper makes, in the order of Table 1; then all others that were tested."""
    pairs = []
    for stage in runs.stages:
        progressive, direct, baseline = stage["progressive"], stage["direct"], stage["baseline"]
        pairs += [(progressive, "T1"), (progressive, baseline)]
        if direct != progressive:
            pairs += [(direct, baseline), (progressive, direct)]
    for paired in runs.tests():
        for test in paired:
            if (test["b"], test["a"]) not in pairs:
                pairs.append((test["a"], test["b"]))
    return list(dict.fromkeys(pairs))


def _tests_by_pair(paired):
    """{(a, b, set): (difference, low, high, p, differences of the seeds)}, each test from both sides."""
    tests = {}
    for t in paired:
        difference, low, high, p = t["difference"], t["low"], t["high"], t.get("p")
        of_seeds = tuple((t.get("differences") or {}).values())
        tests[t["b"], t["a"], t["set"]] = (-difference, -high, -low, p, tuple(-d for d in of_seeds))
        tests[t["a"], t["b"], t["set"]] = (difference, low, high, p, of_seeds)
    return tests


def _judged(here, untested):
    """From `difference` to `verdict` of a Finding, from what _tests_by_pair says; without any test, from `untested`."""
    if not here:
        return untested, None, None, None, (0, 0, 0), "not tested"
    wins = sum(high < 0 for _, _, high, *_ in here)
    losses = sum(low > 0 for _, low, *_ in here)
    verdict = "within noise"
    if 2 * wins > len(here) and not losses:
        verdict = "beats"
    elif 2 * losses > len(here) and not wins:
        verdict = "worse"
    differences = [difference for difference, *_ in here]
    low, high, p = here[0][1:4]
    if len(here) > 1:
        low, high, p = min(differences), max(differences), None
    votes = (wins, len(here) - wins - losses, losses)
    return sum(differences) / len(here), low, high, p, votes, verdict


# --- what teaching is worth -----------------------------------------------------------------------


def teaching_table(runs):
    """(header, rows): at each size the taught students against the untaught one, and that one against T1."""
    tests = runs.tests()  # one list, or several that say nothing of all seeds together
    tests = {(t["a"], t["b"], t["set"]): t for t in tests[0]} if len(tests) == 1 else {}

    def cells(a, b, show, unit):
        """a's WER relative to b's: 1.8 [1.5, 2.2] x, p = 0.0002"""
        for s in runs.test_sets:
            change, test = runs.relative(a, b, s), tests.get((a, b, s), {})
            if change is None:
                yield DASH
                continue
            interval = f" [{', '.join(map(show, test['relative'][1:]))}]" if test.get("relative") else ""
            p = f", p = {test['p']:.4f}" if test.get("p") is not None else ""
            yield show(change) + interval + unit + p

    rows = []
    for stage in runs.stages:
        baseline = stage["baseline"]
        for student in dict.fromkeys((stage["progressive"], stage["direct"])):
            against = cells(student, baseline, lambda change: f"{100 * change:+.1f}", " %")
            rows.append([size_cell(runs, student), f"{student} against {baseline}", *against])
        times = cells(baseline, "T1", lambda change: f"{1 + change:.2f}", " times")
        rows.append([size_cell(runs, baseline), f"{baseline} over T1", *times])
    return ["params", "WER of", *map(short_name, runs.test_sets)], rows


# --- the paper beside this run -------------------------------------------------------------------


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
                parts.append(f"{percent_cell(change, '+.1f', ' %')} on {short_name(s)} ({verdict})")
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
            lower = sum(f.wer_a < f.wer_b for f in here)
            beats, worse = (sum(f.verdict == verdict for f in here) for verdict in ("beats", "worse"))
            parts.append(
                f"lower WER in {lower} of {len(here)} pairs on {short_name(s)} "
                f"({beats} beyond noise; {worse} worse beyond noise)"
            )
    return ", ".join(parts) or DASH


def verdicts(runs, found):
    """The rule by which the findings were judged, and then the findings, one sentence each."""
    tested = [f for f in found if f.verdict != "not tested"]
    if tested:
        rule, luck = "for this one seed", "not that of the training: another seed would give other models"
        if runs.several:
            rule, luck = "in the majority of the seeds, and in none the opposite", "not that of the training"
        if runs.several and runs.pooled:
            rule, luck = "when seeds and utterances are resampled", "and of the training as far as so few seeds tell"
        yield (
            f"A model beats another (or is worse) when the paired 95 % bootstrap interval of the difference of their "
            f"WERs leaves out zero {rule}; else the two are equal within noise. Of these {len(tested)} comparisons "
            f"one in twenty would look like a difference by chance alone. The intervals cover the luck of the test "
            f"set, {luck}."
        )
    yield "\n".join(f"- {f.sentence()}" for f in found) or "No two models to compare yet."
