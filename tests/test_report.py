"""report.py: the rows of Tables 1 and 2, what is missing, and the files that the command leaves."""

import math

import pytest
from invented_results import THREE_STAGES, make_pooled, make_results, row_of, write

from mini_pkd.findings import findings
from mini_pkd.report import main, report_text, table1, table2, write_report
from mini_pkd.results import Runs, read_results
from mini_pkd.scales import TINY


def test_table1_has_the_paper_s_rows_in_order():
    header, rows = table1(Runs([make_results()]))
    assert [(r[0], r[1], r[3]) for r in rows] == [
        *[("", "T1", "-"), ("1.1", "S1", "T1"), ("1.1", "B1", "-")],
        *[("1.2", "S3", "S1"), ("1.2", "S2", "T1"), ("1.2", "B2", "-")],
        *[("1.3", "S5", "S3"), ("1.3", "S4", "T1"), ("1.3", "B3", "-")],
        *[("2.1", "S6", "T1"), ("2.1", "B4", "-")],
        *[("2.2", "S8", "S6"), ("2.2", "S7", "T1"), ("2.2", "B5", "-")],
    ]
    assert all(len(r) == len(header) for r in rows)


@pytest.mark.parametrize("drop, order", [([], "12647"), (["S1", "B2"], "12647"), (["S1", "B1"], "26471")])
def test_table2_has_the_direct_students_by_compression_each_with_its_baseline(drop, order):
    pairs = {"1": ("S1", "B1"), "2": ("S2", "B2"), "6": ("S6", "B4"), "4": ("S4", "B3"), "7": ("S7", "B5")}
    _, rows = table2(Runs([make_results(drop=drop)]))
    assert [r[0] for r in rows] == ["T1", *(name for pair in order for name in pairs[pair])]
    assert all(r[2] == ("T1" if r[0].startswith("S") else "-") for r in rows)


@pytest.mark.parametrize("drop", [["S3"], ["T1"], ["B1", "B2", "S2"], [m.name for m in TINY.models()]])
def test_missing_models_are_dashes(drop, tmp_path):
    write_report([write(tmp_path, make_results(TINY, drop=drop))])
    runs, path = Runs([read_results(tmp_path)]), tmp_path / "report.md"
    header, rows = table1(runs)
    for name in drop:
        row = dict(zip(header, row_of(rows, name), strict=True))
        assert row["WER clean %"] == row["SER other %"] == row["params"] == "-"
    text = path.read_text()
    assert 'shown as "-": ' in text and all(name in text for name in drop)
    assert not any({f.a, f.b} & set(drop) for f in findings(runs))


def test_a_model_in_training_is_missing_too():
    results = make_results(TINY)
    results["models"][1].update(wer=None, ser={}, wer_ci95=None, seconds=None)
    name = results["models"][1]["name"]
    text = report_text(Runs([results]))
    assert f'shown as "-": {name}' in text


def test_several_folders_and_out(tmp_path, capsys):
    folders = [write(tmp_path / str(s), make_results(TINY, seed=s)) for s in range(3)]
    assert main([*map(str, folders), "--out", str(tmp_path / "all")]) == 0
    assert "mean over 3 seeds" in (tmp_path / "all" / "report.md").read_text()
    assert not (folders[0] / "report.md").exists()
    assert "8.2 (8.0..8.5)" in capsys.readouterr().out


@pytest.mark.parametrize("make", [make_results, make_pooled])
def test_one_experiment_of_three_stages(make, tmp_path):
    """What tiny may become: sizes T1, 79, 61, 46 and nine models."""
    shown = write_report([write(tmp_path, make(THREE_STAGES))])
    rows = [line.split()[:2] for line in shown.splitlines() if line.startswith("  1.")]
    assert [" ".join(row) for row in rows] == [
        *("1.1 S1", "1.1 B1", "1.2 S3", "1.2 S2", "1.2 B2", "1.3 S5", "1.3 S4", "1.3 B3")
    ]
    text = (tmp_path / "report.md").read_text()
    assert "Not there yet" not in text
    for part in (
        "| 1.3 | S5 | progressive | S3 | 0.460 M | 64 % |", "| S4 | direct | T1 |", "| S4 against B3 | ", "S5 beats B3",
        "| S5 is 10 % / 7.5 % (clean / other) worse than T1, at 64 % compression | S5 against T1: +",
        "there is no S6 at this scale", "lower WER in 5 of 5 pairs on clean", "lower WER in 0 of 2 pairs on clean",
    ):  # fmt: skip
        assert part in text, part
    assert "experiment 2" not in text.lower() and "Figures 2 and 3" not in text


def test_pooled_seeds_show_interval_and_range(tmp_path):
    shown = write_report([write(tmp_path, make_pooled())])
    assert "8.4 (8.0..9.0)" in shown and "8.4 [" not in shown and "mean and range of the seeds 0, 1, 4." in shown
    text = (tmp_path / "report.md").read_text()
    assert "| 8.4 [6.4, 11.4] (8.0..9.0) | 16.8 [13.8, 19.8] (16.0..18.0) |" in text
    assert "in brackets 95 % bootstrap intervals over seeds and utterances, in parentheses the range" in text


def test_speakers_are_listed_unless_there_are_many(tmp_path):
    text = report_text(Runs([make_results(TINY), make_results(TINY, seed=1)]))
    assert "## WER of each speaker of test-other, %" in text and "of test-clean, %" not in text
    assert "| kal | 100 | 16.2 |" in text  # T1: 16.0 and 16.5
    assert "| pico/1 | 101 | 17.2 |" in text
    results = make_results(TINY)
    results["speakers"] = [{**results["speakers"][0], "speaker": str(i)} for i in range(13)]
    assert "WER of each speaker" not in report_text(Runs([results]))
    assert "WER of each speaker" not in report_text(Runs([{**results, "speakers": None}]))


def test_a_run_that_has_only_begun(tmp_path):
    results = {**make_results(TINY), "models": [], "test_sets": [], "paired": []}
    assert "The whole report" in write_report([write(tmp_path, results)])
    assert "No two models to compare yet." in (tmp_path / "report.md").read_text()


def test_rates_of_a_test_set_without_words_can_be_reported(tmp_path):
    """wer.py gives infinity for errors where no words are, and so a difference that is no number."""
    results = make_results(TINY)
    for model in results["models"]:
        model["wer"]["test-clean"], model["wer_ci95"]["test-clean"] = math.inf, [0.0, math.inf]
        model["wer_ci95"]["test-other"][1] = math.inf
    results["paired"][0].update(difference=math.nan, low=math.nan, high=math.nan)
    write_report([write(tmp_path, results)])
    assert "inf [0.0, inf]" in (tmp_path / "report.md").read_text()


def test_a_command_that_is_not_utf8_does_not_stop_the_report(tmp_path, capsys):
    folder = write(tmp_path, {**make_results(TINY), "command": "cascade --data caf\udce9\n# title"})
    assert main([str(folder)]) == 0
    assert "`cascade --data caf\\udce9 # title`" in (folder / "report.md").read_text()
