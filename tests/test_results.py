"""results.py: several seeds read as one, and every bad file refused in one sentence."""

import copy
import json
import math
import os
import random
from pathlib import Path

import pytest
from invented_results import make_pooled, make_results, write

from mini_pkd import UserError
from mini_pkd.report import main, report_text, table1, write_report
from mini_pkd.results import Runs, read_results, read_runs
from mini_pkd.scales import SMALL, TINY
from mini_pkd.tables import as_text


def test_relative_changes_compare_runs_that_have_both():
    """S5 is missing in seed 4: its change against T1 is that of seed 0, not seed 0's S5 against both seeds' T1."""
    runs = Runs([make_results(seed=0), make_results(seed=4, drop=("S5",))])
    one = Runs([make_results(seed=0)])
    assert runs.relative("S5", "T1", "test-clean") == one.relative("S5", "T1", "test-clean")
    assert Runs([make_results(drop=("S5",))]).relative("S5", "T1", "test-clean") is None


STAGE = {"teacher": "T1", "progressive": "S1", "direct": "S1", "baseline": "B1"}


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
        (changed(experiments=[{"stages": [STAGE] * 21}]), "21 stages in one experiment"),
        (changed(scale="\ud800"), "scale is"),
        (lambda text: "[" * 200_000, "truncated"),
        (changed(experiments=[{"number": 1}]), "experiments[0].stages is missing"),
        (changed(experiments=[{"stages": [{"progressive": "S1"}]}]), "stages[0].teacher is missing"),
        (changed(paired=[{"a": "S1"}]), "paired[0].b is missing"),
        (changed(runs=[{"scale": "tiny"}]), "runs[0].seed is missing"),
        (changed(runs=7), "runs is 7 where a list"),
        (changed(runs=[], seed=None), "seed is null where"),
        (changed(runs=[make_results(TINY)] * 2), "give each seed once"),
        (changed(runs=[make_results(TINY), make_results(SMALL, seed=1)]), "different scales"),
    ],
)
def test_foreign_files_are_one_sentence(tmp_path, capsys, spoil, word):
    folder = write(tmp_path, make_results(TINY))
    path = folder / "results.json"
    path.write_text(spoil(path.read_text()))
    assert main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("report: ") and word in error
    assert str(path) in error or "give runs with fewer" in error or "each seed once" in error or "scales" in error
    assert not (folder / "report.md").exists()


def test_several_seeds_in_one_file(tmp_path):
    folder = write(tmp_path / "run", make_pooled(TINY, seeds=(3, 5)))
    runs = read_runs([folder])
    assert runs.seeds == [3, 5] and runs.get("T1", "wer", "test-clean") == [0.0875, 0.0925]
    low, high = runs.interval("T1", "wer", "test-clean")
    assert (low, high) == (pytest.approx(0.07), pytest.approx(0.12))
    assert runs.interval("S8", "wer", "test-clean") is None
    alone = write(tmp_path / "alone", make_results(TINY, seed=4))
    runs = read_runs([folder, alone])
    assert runs.seeds == [3, 5, 4] and runs.pooled is None and runs.interval("T1", "wer", "test-clean") is None
    assert read_runs([alone]).interval("T1", "wer", "test-clean") == [0.09 - 0.01 + 0.0, 0.09 + 0.011]


def test_missing_folder_different_scales_same_seed(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "there is no" in capsys.readouterr().err
    tiny, small = write(tmp_path / "t", make_results(TINY)), write(tmp_path / "s", make_results(SMALL, seed=1))
    assert main([str(tiny), str(small)]) == 1
    assert "different scales, tiny and small" in capsys.readouterr().err
    assert main([str(tiny), str(tiny)]) == 1
    assert "each seed once" in capsys.readouterr().err


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


def test_results_in_the_repository_can_be_read(tmp_path):
    stored = sorted((Path(__file__).parent.parent / "results").glob("*/results.json"))
    assert stored
    for path in stored:
        written = json.loads(path.read_text())
        read = read_results(path)
        for record, source in [(read, written), *zip(read.get("runs", []), written.get("runs", []), strict=True)]:
            for key in record.keys() - {"models", "paired", "runs"}:
                assert record[key] == source.get(key)
            for kind in ("models", "paired"):
                for new, old in zip(record[kind], source[kind], strict=True):
                    assert new == {key: old.get(key) for key in new}
        assert "The whole report" in write_report([path], tmp_path / path.parent.name)


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
    whole = [make_results(TINY), make_results(SMALL, drop=["S3"]), make_pooled(TINY)]
    several = [make_results(TINY, seed=5), make_results(SMALL, seed=5)]
    reports = refusals = drawn = 0
    for case in range(300):
        path = tmp_path / "results.json"
        path.write_bytes(spoilt(whole[case % 3], rng))
        try:
            runs = read_runs([tmp_path])
            if case % 7 == 0:
                runs = Runs([*runs.results, several[case % 2]])
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
