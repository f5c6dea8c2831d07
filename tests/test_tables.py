"""tables.py: every cell of a row recomputed by hand."""

import pytest
from invented_results import SETS, make_results, row_of

from mini_pkd.report import report_text, table1
from mini_pkd.results import Runs
from mini_pkd.scales import TINY
from mini_pkd.tables import as_markdown, as_text


def test_the_numbers_of_a_row():
    results = make_results()
    header, rows = table1(Runs([results]))
    by_name = {m["name"]: m for m in results["models"]}
    row = dict(zip(header, row_of(rows, "S3"), strict=True))
    wer, t1, b2 = (by_name[n]["wer"]["test-clean"] for n in ("S3", "T1", "B2"))
    assert row["params"] == "0.610 M" and row["compr."] == "52 %"
    assert row["WER clean %"] == f"{100 * wer:.1f} [{100 * wer - 1:.1f}, {100 * wer + 1.1:.1f}]"
    assert row["WER other %"].startswith(f"{200 * wer:.1f} [")
    assert row["SER clean %"] == f"{300 * wer:.1f}" and row["SER other %"] == f"{400 * wer:.1f}"
    change, against = 100 * (wer - t1) / t1, 100 * (wer - b2) / b2
    assert row["WER vs T1 %: clean / other"] == f"{change:+.1f} / {change:+.1f}"  # other is double everywhere
    assert row["vs baseline %: clean / other"] == f"{against:+.1f} / {against:+.1f}"
    teacher = dict(zip(header, row_of(rows, "T1"), strict=True))
    assert teacher["WER vs T1 %: clean / other"] == teacher["vs baseline %: clean / other"] == "-"
    assert teacher["params"] == "1.28 M" and teacher["compr."] == "0 %"


def test_full_size_parameters_read_128_million():
    results = make_results()
    for model in results["models"]:
        model["params"] *= 100
    _, rows = table1(Runs([results]))
    assert row_of(rows, "T1")[4] == "128 M" and row_of(rows, "S8")[4] == "24.0 M"


def test_several_seeds_are_averaged_and_counted():
    runs = Runs([make_results(seed=s) for s in (0, 1, 4)])
    header, rows = table1(runs)
    row = dict(zip(header, row_of(rows, "T1"), strict=True))
    # 8.00, 8.25, 9.00 %
    assert row["WER clean %"] == f"{(8 + 8.25 + 9) / 3:.1f} ({8.0:.1f}..{9.0:.1f})" and row["seeds"] == "3"
    assert "mean over 3 seeds (0, 1, 4)" in report_text(runs)
    assert runs.relative("S1", "T1", "test-clean") == pytest.approx(
        (0.085 + 0.0875 + 0.095) / (0.08 + 0.0825 + 0.09) - 1, abs=1e-12
    )


def test_a_model_that_only_some_seeds_have():
    runs = Runs([make_results(seed=0), make_results(seed=2, drop=["S3"])])
    header, rows = table1(runs)
    assert row_of(rows, "S3")[-1] == "1" and row_of(rows, "T1")[-1] == "2"


def test_a_faultless_reference_gives_no_relative_change():
    results = make_results(TINY)
    for model in results["models"]:
        model["wer"] = {s: 0.0 for s in SETS}
    header, rows = table1(Runs([results]))
    assert row_of(rows, "S3")[header.index("WER vs T1 %: clean / other")] == "-"


def test_rendering():
    header, rows = ["model", "WER"], [["T1", "8.1"], ["S3", "-"]]
    assert as_text(header, rows).splitlines()[2:] == ["T1     8.1", "S3       -"]
    assert as_markdown(header, rows).splitlines()[1] == "| --- | --- |"
