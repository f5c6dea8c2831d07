"""report.py: every number of the tables recomputed by hand, every sentence read back, every bad file refused."""

import builtins
import copy
import json
import math
import os
import random
import re
from pathlib import Path

import pytest

from mini_pkd import UserError
from mini_pkd.report import (
    Runs,
    as_markdown,
    as_text,
    findings,
    main,
    paper_beside_ours,
    read_results,
    report_text,
    table1,
    table2,
    write_report,
)
from mini_pkd.scales import SMALL, TINY

SETS = ["test-clean", "test-other"]


def make_results(scale=SMALL, seed=0, drop=(), paired=True):
    """Invented results in the cascade's format.  WER of model i on clean: 8 % + i/2 % + seed/4 %; other: double."""
    params = {"T1": 1_280_000, "79": 790_000, "61": 610_000, "46": 460_000, "58": 580_000, "24": 240_000}
    models = []
    for i, model in enumerate(scale.models()):
        if model.name in drop:
            continue
        wer = 0.08 + 0.005 * i + 0.0025 * seed
        models.append(
            {
                "name": model.name,
                "role": model.role,
                "experiment": list(model.experiment),
                "stage": model.stage,
                "teacher": model.teacher,
                "params": params[model.size],
                "compression": 1 - params[model.size] / params["T1"],
                "wer": {"test-clean": wer, "test-other": 2 * wer},
                "ser": {"test-clean": 3 * wer, "test-other": 4 * wer},
                "wer_ci95": {"test-clean": [wer - 0.01, wer + 0.011], "test-other": [2 * wer - 0.02, 2 * wer + 0.02]},
                "seconds": 61.0,
                "updates": 1234,
                "best_dev_wer": wer + 0.001,
            }
        )
    rates = {m["name"]: m["wer"] for m in models}
    tests = []
    for stages in scale.experiments:
        for stage in stages:
            for a, b in ((stage.progressive, stage.baseline), (stage.progressive, "T1")):
                for s in SETS:
                    if a in rates and b in rates:
                        d = rates[a][s] - rates[b][s]
                        test = {"a": a, "b": b, "set": s, "difference": d, "low": d - 0.008, "high": d + 0.008}
                        tests.append({**test, "p": 0.0312})
    return {
        "scale": scale.name,
        "seed": seed,
        "command": f"python -m mini_pkd.cascade --scale {scale.name} --seed {seed}",
        "machine": "2 cores",
        "seconds": 512.3,
        "test_sets": SETS,
        "experiments": [
            {
                "number": n,
                "stages": [
                    {
                        "stage": i,
                        "teacher": stage.teacher,
                        "progressive": stage.progressive,
                        "direct": stage.direct,
                        "baseline": stage.baseline,
                    }
                    for i, stage in enumerate(stages, start=1)
                ],
            }
            for n, stages in enumerate(scale.experiments, start=1)
        ],
        "ladder": ["S1", "S2", "S6", "S4", "S7"] if scale is SMALL else ["S1", "S2"],
        "models": models,
        "paired": tests if paired else [],
    }


def write(folder, results):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def row_of(rows, model):
    (row,) = [r for r in rows if model in r[:2]]
    return row


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


def test_table2_pairs_each_rung_with_its_baseline():
    results = make_results()
    rungs = [("S1", "B1"), ("S2", "B2"), ("S6", "B4"), ("S4", "B3"), ("S7", "B5")]
    names = [student for student, _ in rungs]
    as_dictionaries = [{"student": student, "baseline": baseline, "size": "79"} for student, baseline in rungs]
    for ladder in (names, as_dictionaries, None):  # None: the report finds the rungs itself
        _, rows = table2(Runs([{**results, "ladder": ladder}]))
        assert [r[0] for r in rows] == ["T1", *(name for rung in rungs for name in rung)]
        assert all(r[2] == ("T1" if r[0] in names else "-") for r in rows)


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


def test_command_writes_report_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    folder = write(tmp_path / "run", make_results())
    assert main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ +1\.2 +S3 +progressive +S1 +0\.610 M +52 % ", shown, re.M)
    text = (folder / "report.md").read_text()
    for number in (2, 3):
        assert (folder / f"figure{number}.png").read_bytes().startswith(b"\x89PNG")
        assert f"](figure{number}.png)" in text
    assert "## Table 1" in text and "## Table 2" in text and "8 min 32 s" in text
    assert not list(folder.glob("*.tmp"))


def test_several_folders_and_out(tmp_path, capsys):
    folders = [write(tmp_path / str(s), make_results(TINY, seed=s)) for s in range(3)]
    assert main([*map(str, folders), "--out", str(tmp_path / "all")]) == 0
    assert "mean over 3 seeds" in (tmp_path / "all" / "report.md").read_text()
    assert not (folders[0] / "report.md").exists()
    assert "8.2 (8.0..8.5)" in capsys.readouterr().out


def test_without_matplotlib_one_line_and_the_tables(tmp_path, capsys, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    folder = write(tmp_path, make_results(TINY))
    assert main([str(folder)]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().out
    text = (folder / "report.md").read_text()
    assert "matplotlib is not installed" in text and "| 1.2 | S3 |" in text
    assert not list(folder.glob("*.png"))


def truncated(text):
    return text[: len(text) // 2]


def changed(**changes):
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "spoil, word",
    [
        (truncated, "truncated"),
        (lambda text: "", "truncated"),
        (lambda text: "\x00\x01", "truncated"),
        (lambda text: "[1, 2]", "the whole is a list where a dictionary is expected"),
        (lambda text: '{"hello": 1}', "scale is missing"),
        (changed(models={}), "models is a dictionary where a list"),
        (changed(models=[{"wer": {}}]), "models[0].name is missing"),
        (changed(models=[{"name": "T1", "wer": {"test-clean": "8 %"}}]), 'wer.test-clean is "8 %" where a rate'),
        (changed(models=[{"name": "T1", "wer": 0.08}]), "models[0].wer is 0.08 where a dictionary"),
        (changed(models=[{"name": "T1", "wer_ci95": {"test-clean": [0.1]}}]), "test-clean is a list where a pair"),
        (changed(models=[{"name": "T1", "params": "many"}]), 'params is "many" where'),
        (changed(models=[{"name": "T1", "params": True}]), "params is true where"),
        (changed(models=[{"name": "T1", "wer": {"test-clean": 10**400}}]), "models[0].wer.test-clean is 1000"),
        (changed(models=[{"name": "T1", "ser": {"test-clean": math.nan}}]), "models[0].ser.test-clean is NaN"),
        (changed(models=[{"name": "T1"}, {"name": "T1"}]), "the model T1 twice"),
        (changed(models=[{"name": "$T_1$"}]), "models[0].name"),
        (changed(test_sets=["a", "a"]), "the test set a twice"),
        (changed(test_sets=[f"test-{i}" for i in range(21)]), "21 test sets"),
        (changed(scale="\ud800"), "scale is"),
        (lambda text: "[" * 200_000, "truncated"),
        (changed(experiments=[{"number": 1}]), "experiments[0].stages is missing"),
        (changed(experiments=[{"stages": [{"progressive": "S1"}]}]), "stages[0].teacher is missing"),
        (changed(ladder=[7]), "ladder[0] is 7 where"),
        (changed(paired=[{"a": "S1"}]), "paired[0].b is missing"),
    ],
)
def test_foreign_files_are_one_sentence(tmp_path, capsys, spoil, word):
    folder = write(tmp_path, make_results(TINY))
    path = folder / "results.json"
    path.write_text(spoil(path.read_text()))
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("report: ") and word in error
    assert str(path) in error or "test sets" in error
    assert not (folder / "report.md").exists()


def test_missing_folder_different_scales_same_seed(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "there is no" in capsys.readouterr().err
    tiny, small = write(tmp_path / "t", make_results(TINY)), write(tmp_path / "s", make_results(SMALL, seed=1))
    assert main([str(tiny), str(small)]) == 1
    assert "different scales, tiny and small" in capsys.readouterr().err
    assert main([str(tiny), str(tiny)]) == 1
    assert "each seed once" in capsys.readouterr().err


def test_rendering():
    header, rows = ["model", "WER"], [["T1", "8.1"], ["S3", "-"]]
    assert as_text(header, rows).splitlines()[2:] == ["T1     8.1", "S3       -"]
    assert as_markdown(header, rows).splitlines()[1] == "| --- | --- |"


def test_relative_changes_compare_runs_that_have_both():
    """S5 is missing in seed 4: its change against T1 is that of seed 0, not seed 0's S5 against both seeds' T1."""
    runs = Runs([make_results(seed=0), make_results(seed=4, drop=("S5",))])
    one = Runs([make_results(seed=0)])
    assert runs.relative("S5", "T1", "test-clean") == one.relative("S5", "T1", "test-clean")
    assert Runs([make_results(drop=("S5",))]).relative("S5", "T1", "test-clean") is None


def test_a_faultless_reference_gives_no_relative_change():
    results = make_results(TINY)
    for model in results["models"]:
        model["wer"] = {s: 0.0 for s in SETS}
    header, rows = table1(Runs([results]))
    assert row_of(rows, "S3")[header.index("WER vs T1 %: clean / other")] == "-"


def test_a_run_that_has_only_begun(tmp_path):
    results = {**make_results(TINY), "models": [], "test_sets": [], "paired": []}
    assert "The whole report" in write_report([write(tmp_path, results)])
    assert "No two models to compare yet." in (tmp_path / "report.md").read_text()


# --- whatever hands do to a file ----------------------------------------------------------------------------


ODD = (None, True, 0, -1, 7, 10**30, -(10**400), 1e308, -0.0, 1e-320, math.nan, math.inf, -math.inf, "", "T1", "S1")
ODD += ("test-clean", "\ud800", "$\\frac{$", "a|b\n", "x" * 10**5, [], {}, [[]], [[1, 2], [3]], {"": {}}, {"T1": None})
DEEP = "[" * 100_000 + "]" * 100_000


def places(value):
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def spoilt(results, rng):
    """-> bytes of a results.json in which one to three things are not as they were."""
    results = copy.deepcopy(results)
    for _ in range(rng.choice((1, 1, 2, 3))):
        container, key = rng.choice(list(places(results)))
        other, elsewhere = rng.choice(list(places(results)))
        act = rng.randrange(5)
        if act == 0:
            del container[key]
        elif act == 1:
            container[key] = copy.deepcopy(other[elsewhere])
        elif act == 2:  # the same thing twice, or one with a strange name
            if isinstance(container, list):
                container.append(copy.deepcopy(container[key]))
            else:
                container[str(rng.choice(ODD))] = container[key]
        else:
            container[key] = rng.choice(ODD)
    text = json.dumps(results)
    if rng.random() < 0.1:
        text = text.replace(rng.choice(("0", "1", '"T1"', "null", "[")), DEEP, 1)
    data = text.encode()
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        data = rng.choice((data[:at], data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :], data + data))
    return data


def test_a_spoilt_file_is_a_report_or_one_sentence(tmp_path):
    """Three hundred files; figures for some of those that can be read, since drawing is slow."""
    rng = random.Random(9)
    whole = [make_results(TINY), make_results(SMALL, drop=["S3"])]
    several = [make_results(TINY, seed=5), make_results(SMALL, seed=5)]
    reports = refusals = drawn = 0
    for case in range(300):
        path = tmp_path / "results.json"
        path.write_bytes(spoilt(whole[case % 2], rng))
        try:
            runs = Runs([read_results(tmp_path)] + [several[case % 2]] * (case % 7 == 0))
            report_text(runs).encode()
            as_text(*table1(runs, compact=True)).encode()
            if drawn < 8 and case % 5 == 0:
                drawn += 1
                write_report([tmp_path])
            reports += 1
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 500, error
            refusals += 1
    assert reports > 50 and refusals > 50, (reports, refusals)


def test_rates_of_a_test_set_without_words_can_be_reported(tmp_path):
    """wer.py gives infinity for errors where no words are, and so a difference that is no number."""
    results = make_results(TINY)
    for model in results["models"]:
        model["wer"]["test-clean"], model["wer_ci95"]["test-clean"] = math.inf, [0.0, math.inf]
        model["wer_ci95"]["test-other"][1] = math.inf
    results["paired"][0].update(difference=math.nan, low=math.nan, high=math.nan)
    write_report([write(tmp_path, results)])
    assert "inf [0.0, inf]" in (tmp_path / "report.md").read_text()


def test_results_in_the_repository_can_be_read(tmp_path):
    stored = sorted((Path(__file__).parent.parent / "results").glob("*/results.json"))
    assert stored
    for path in stored:
        written = json.loads(path.read_text())
        read = read_results(path)
        for key in read.keys() - {"models"}:
            assert read[key] == written[key]
        for new, old in zip(read["models"], written["models"], strict=True):
            assert new == {key: old[key] for key in new}
        assert "The whole report" in write_report([path], tmp_path / path.parent.name)


def test_a_command_that_is_not_utf8_does_not_stop_the_report(tmp_path, capsys):
    folder = write(tmp_path, {**make_results(TINY), "command": "cascade --data caf\udce9\n# title"})
    assert main([str(folder)]) == 0
    assert "`cascade --data caf\\udce9 # title`" in (folder / "report.md").read_text()


def test_the_file_itself_may_be_named(tmp_path, capsys):
    folder = write(tmp_path / "run", make_results(TINY))
    assert main([str(folder / "results.json")]) == 0 and (folder / "report.md").exists()


def test_places_that_cannot_be_read_or_written(tmp_path, capsys):
    folder = write(tmp_path / "run", make_results(TINY))
    file, pipe, loop = tmp_path / "file", tmp_path / "pipe", tmp_path / "loop"
    file.write_text("here stands a file")
    (pipe / "results.json").parent.mkdir()
    os.mkfifo(pipe / "results.json")  # nobody will ever write into it
    loop.symlink_to(loop)
    (tmp_path / "folder" / "results.json").mkdir(parents=True)
    for arguments, word in (
        ([file], "Not a directory"),
        ([pipe], "not a plain file"),
        ([loop], "cannot be read"),
        ([tmp_path / "folder"], "not a plain file"),
        ([tmp_path / ("x" * 300)], "File name too long"),
        ([folder, "--out", file], "could not be written"),
        ([folder, "--out", file / "below"], "could not be written"),
        ([folder, "--out", loop], "could not be written"),
    ):
        assert main([str(argument) for argument in arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1, captured
        assert captured.err.startswith("report: ") and word in captured.err
