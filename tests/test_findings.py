"""findings.py: every sentence read back, every verdict provoked, and the paper's claims beside ours."""

import re

import pytest
from invented_results import make_pooled, make_results

from mini_pkd.findings import findings, paper_beside_ours, teaching_table
from mini_pkd.report import report_text
from mini_pkd.results import Runs
from mini_pkd.scales import TINY

SENTENCE = re.compile(
    r"- (\w+) (beats|is within noise of|is worse than) (\w+) on (\S+): (\S+) % against (\S+) %, "
    r"difference (\S+) points \[(\S+), (\S+)\], p = (\S+)\."
)


def test_sentences_can_be_read_back_and_agree_with_the_file():
    results = make_results()
    text = report_text(Runs([results]))
    wer = {m["name"]: m["wer"] for m in results["models"]}
    read = [m.groups() for m in SENTENCE.finditer(text)]
    assert len(read) == len(results["paired"])
    seen = set()
    for a, verdict, b, s, wer_a, wer_b, difference, low, high, p in read:
        assert (float(wer_a), float(wer_b)) == (
            pytest.approx(100 * wer[a][s], abs=0.051),
            pytest.approx(100 * wer[b][s], abs=0.051),
        )  # one decimal
        exact = 100 * (wer[a][s] - wer[b][s])
        assert float(difference) == pytest.approx(exact, abs=0.051)
        assert float(low) <= float(difference) <= float(high) and p == "0.0312"
        side = "is worse than" if exact > 0.8 else "beats" if exact < -0.8 else "is within noise of"
        assert verdict == side
        seen.add(verdict)
    assert {"is worse than", "is within noise of"} <= seen


def test_verdicts():
    """One pair, every verdict: S1 against T1 with the interval below, around and above zero."""
    for low, high, verdict in ((-0.02, -0.001, "beats"), (-0.01, 0.01, "within noise"), (0.001, 0.02, "worse")):
        results = make_results(TINY, paired=False)
        test = {"a": "S1", "b": "T1", "set": "test-clean", "difference": (low + high) / 2, "low": low, "high": high}
        for stored in (test, {**test, "a": "T1", "b": "S1", "difference": -1, "low": -high, "high": -low}):
            found = findings(Runs([{**results, "paired": [stored]}]))
            mine = {(f.a, f.b, f.test_set): f for f in found}["S1", "T1", "test-clean"]
            assert mine.verdict == verdict and (mine.low, mine.high) == (low, high)
            others = {f.verdict for f in found if f is not mine}
            assert others == {"not tested"}
            assert "S3 against B2 was not tested on test-clean" in report_text(Runs([results]))


@pytest.mark.parametrize(
    "signs, verdict",
    [("---", "beats"), ("--0", "beats"), ("-00", "within noise"), ("--+", "within noise"), ("0++", "worse")],
)
def test_verdict_over_seeds(signs, verdict):
    several = []
    for seed, sign in enumerate(signs):
        d = {"-": -0.02, "0": 0.001, "+": 0.02}[sign]
        test = {"a": "S3", "b": "B2", "set": "test-clean", "difference": d, "low": d - 0.01, "high": d + 0.01, "p": 0.5}
        several.append({**make_results(TINY, seed=seed), "paired": [test]})
    (mine,) = [f for f in findings(Runs(several)) if f.votes != (0, 0, 0)]
    assert (mine.a, mine.b, mine.verdict) == ("S3", "B2", verdict)
    assert mine.votes == (signs.count("-"), signs.count("0"), signs.count("+"))
    assert f"beats in {signs.count('-')}, within noise in {signs.count('0')}" in mine.sentence()


@pytest.mark.parametrize("shift, verdict", [(-0.03, "beats"), (0.0, "within noise"), (0.03, "worse")])
def test_one_test_over_all_seeds_decides(shift, verdict):
    """... whatever the tests of single seeds say: these all say the opposite."""
    pooled = make_pooled(TINY)
    for run in pooled["runs"]:
        for t in run["paired"]:
            t.update(difference=-shift, low=-shift - 0.001, high=-shift + 0.001)
    for t in pooled["paired"]:
        t.update(difference=shift, low=shift - 0.01, high=shift + 0.01)
        t["differences"] = {"0": shift - 0.002, "1": shift, "4": shift + 0.002}
    found = {(f.a, f.b, f.test_set): f for f in findings(Runs(pooled["runs"], pooled))}
    for name, rival in (("S1", "B1"), ("B1", "T1")):
        f = found[name, rival, "test-other"]
        assert f.verdict == verdict and f.of_seeds == (shift - 0.002, shift, shift + 0.002)
        seeds = ", ".join(f"{100 * d:+.1f}" for d in f.of_seeds)
        interval = f"[{100 * shift - 1:+.1f}, {100 * shift + 1:+.1f}]"
        assert f.sentence().endswith(f"difference {100 * shift:+.1f} points {interval}, p = 0.0312; seeds {seeds}.")


def test_what_a_teacher_and_what_size_is_worth():
    """By hand: in make_results S2 is a half point below B2, and B2 2.5 points above T1, per seed 0, 1, 4."""
    _, rows = teaching_table(Runs([make_results(TINY)]))
    table = {row[1]: row for row in rows}
    assert list(table) == ["S1 against B1", "B1 over T1", "S3 against B2", "S2 against B2", "B2 over T1"]
    assert table["S2 against B2"] == ["0.610 M", "S2 against B2", *["-9.5 %"] * 2]  # 9.5 against 10.5 %; not tested
    assert table["B2 over T1"][2] == "1.31 times, p = 0.0312"  # 10.5 / 8
    pooled = make_pooled(TINY)
    table = {row[1]: row for row in teaching_table(Runs(pooled["runs"], pooled))[1]}
    assert table["B2 over T1"][2] == "1.30 [0.95, 1.25] times, p = 0.0312"  # (10.5 + 10.75 + 11.5) / (8 + 8.25 + 9)
    assert table["S3 against B2"][3] == "-4.6 [-5.0, +25.0] %, p = 0.0312"
    table = {row[1]: row for row in teaching_table(Runs(pooled["runs"]))[1]}  # only the report has seen them together
    assert table["S3 against B2"][3] == "-4.6 %"
    assert teaching_table(Runs([make_results(TINY, drop=["B1"])]))[1][0][2:] == ["-", "-"]


def test_the_paper_beside_ours():
    runs = Runs([make_results()])
    _, rows = paper_beside_ours(runs, findings(runs))
    ours = dict(rows)
    claim = next(c for c in ours if c.startswith("S8 is about 24 %"))
    change = 100 * (runs.mean("S8", "wer", "test-clean") / runs.mean("T1", "wer", "test-clean") - 1)
    assert f"{change:+.1f} % on clean" in ours[claim] and "at 81 % compression" in ours[claim]
    # In make_results a later model is worse, and scales.py lists direct, progressive, baseline in this order.
    assert ours["every student is better than its baseline"].startswith("lower WER in 8 of 8 pairs on clean (")
    assert ours["the progressive student is better than the direct one"].startswith("lower WER in 0 of 3 pairs")
    tiny = Runs([make_results(TINY)])
    _, rows = paper_beside_ours(tiny, findings(tiny))
    assert dict(rows)[claim] == "there is no S8 at this scale"
