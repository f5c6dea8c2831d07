"""figures.py: every model in its box with its numbers, no word over another, and the pictures of a report."""

import builtins
import itertools
import math
import re
import sys
from importlib.util import find_spec

import pytest
from invented_results import THREE_STAGES, make_pooled, make_results, write

from mini_pkd.figures import cascade_alt, cascade_boxes, cascade_figure, compression_figure
from mini_pkd.report import main
from mini_pkd.results import Runs
from mini_pkd.scales import SMALL, TINY
from mini_pkd.tables import rate_cell, size_cell

needs_matplotlib = pytest.mark.skipif(not find_spec("matplotlib"), reason="the figures need matplotlib")


def renamed(results, names):
    """The same results, the models under other names."""

    def name(value):
        if isinstance(value, dict):
            return {key: name(inner) for key, inner in value.items()}
        return [name(inner) for inner in value] if isinstance(value, list) else names.get(value, value)

    return name(results)


def more_sets(results, count):
    sets = [f"test-{'x' * 9}{i}" for i in range(count)]
    for model in results["models"]:
        for key in ("wer", "wer_ci95"):
            model[key] = dict.fromkeys(sets, model[key]["test-clean"])
    return {**results, "test_sets": sets}


def without_numbers(results):
    for model in results["models"][1:]:
        model.update(params=None, compression=None, wer=None)
    return results


def infinite(results):
    for model in results["models"]:
        model["wer"]["test-clean"], model["wer_ci95"]["test-clean"] = math.inf, [0.0, math.inf]
    return results


LONG = {"S3": "M" * 80, "B1": "i_" * 20, "S2": "W-2"}
CASES = {
    "tiny": [make_results(TINY)],
    "small": [make_results(SMALL)],
    "three seeds": [make_results(SMALL, seed=s) for s in (0, 1, 40)],
    "three stages": [make_results(THREE_STAGES)],
    "long names": [renamed(make_results(SMALL), LONG)],
    "twenty test sets": [more_sets(make_results(TINY), 20)],
    "one test set": [more_sets(make_results(TINY), 1)],
    "no numbers yet": [without_numbers(make_results(TINY))],
    "infinite rates": [infinite(make_results(TINY))],
    "one stage": [
        {**make_results(TINY), "experiments": [{"stages": make_results(TINY)["experiments"][0]["stages"][:1]}]}
    ],
    "no stage": [{**make_results(TINY), "experiments": [{"stages": []}]}],
}


def extents(figure):
    """-> the picture, [(words, rectangle)], [rectangle of a box], in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    (axes,) = figure.axes
    words = [(t.get_text(), t.get_window_extent(renderer)) for t in axes.texts if t.get_text()]
    return figure.bbox, words, [patch.get_window_extent(renderer) for patch in axes.patches]


def overlap(a, b):
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def inside(a, b):
    return b.x0 <= a.x0 and a.x1 <= b.x1 and b.y0 <= a.y0 and a.y1 <= b.y1


@needs_matplotlib
@pytest.mark.parametrize("case", CASES)
def test_no_word_overlaps_another_or_leaves_its_box(case):
    runs = Runs(CASES[case])
    for experiment in range(1, len(runs.experiments) + 1):
        picture, words, boxes = extents(cascade_figure(runs, experiment))
        assert len(boxes) == len(cascade_boxes(runs, experiment))
        for text, here in words:
            assert inside(here, picture), text
            for box in boxes:
                assert inside(here, box) or not overlap(here, box), text
        for (text, here), (other, there) in itertools.combinations(words, 2):
            assert not overlap(here, there), (text, other)
        for one, two in itertools.combinations(boxes, 2):
            assert inside(one, picture) and inside(two, picture) and not overlap(one, two)


@needs_matplotlib
@pytest.mark.parametrize("seeds", [[0], [0, 1, 4]])
def test_every_box_says_name_size_compression_and_rates(seeds):
    runs = Runs([make_results(seed=s) for s in seeds])
    _, words, rectangles = extents(cascade_figure(runs))
    said = {}
    for box in rectangles:
        name, *rest = [text for text, here in words if inside(here, box)]
        said[name] = rest
    assert list(said) == ["T1", "S1", "B1", "S3", "S2", "B2", "S5", "S4", "B3"]
    for name, (_, size, clean, other) in said.items():
        assert size.startswith(size_cell(runs, name)) and ("smaller" in size) == (name != "T1")
        assert clean == f"WER clean  {rate_cell(runs, name, 'wer', 'test-clean')}"
        assert other == f"WER other  {rate_cell(runs, name, 'wer', 'test-other')}"
    assert said["S3"][:2] == ["progressive", "0.610 M, 52 % smaller"]
    assert said["S1"][0] == "progressive = direct" and said["B2"][0] == "baseline"
    spread = "(8.0..9.0)" if len(seeds) > 1 else "[7.0, 9.1]"
    assert said["T1"][2].endswith(spread)


@needs_matplotlib
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 4)])
def test_each_seed_is_a_dot_and_bars_are_the_pooled_interval(seeds):
    from matplotlib.collections import LineCollection, PathCollection

    pooled = make_pooled(THREE_STAGES, seeds)
    runs = Runs(pooled["runs"], pooled)
    for axes, test_set in zip(compression_figure(runs).axes, runs.test_sets, strict=True):
        scattered = [c for c in axes.collections if isinstance(c, PathCollection)]
        dots = {round(y, 6) for c in scattered for _, y in c.get_offsets().tolist()}
        rates = {round(100 * rate, 6) for name in runs.names() for rate in runs.get(name, "wer", test_set)}
        assert dots == (rates if len(seeds) > 1 else set())
        bars = [segment for c in axes.collections if isinstance(c, LineCollection) for segment in c.get_segments()]
        ends = {round(y, 6) for segment in bars for _, y in segment.tolist()}
        assert ends == {round(100 * end, 6) for m in pooled["models"] for end in m["wer_ci95"][test_set]}


@needs_matplotlib
def test_an_arrow_for_each_lesson_and_none_for_a_baseline():
    for number, lessons in ((1, 5), (2, 3)):  # T1-S1-S3-S5 and T1-S2, T1-S4; T1-S6-S8 and T1-S7
        (axes,) = cascade_figure(Runs([make_results()]), number).axes
        assert len([t for t in axes.texts if getattr(t, "arrow_patch", None) is not None]) == lessons
    results = make_results(TINY)
    results["experiments"][0]["stages"][1]["teacher"] = "T1"  # a file from other hands: S3 has not learnt from S1
    (axes,) = cascade_figure(Runs([results])).axes
    assert [t.get_text() for t in axes.texts].count("teaches") == 1


def test_the_cascade_in_words():
    assert cascade_alt(Runs([make_results(TINY)])) == (
        "Experiment 1, tiny: T1 (1.28 M) is the first teacher; T1 teaches S1 (0.790 M), S2 (0.610 M); "
        "S1 teaches S3 (0.610 M); without a teacher: B1 (0.790 M), B2 (0.610 M)"
    )


@needs_matplotlib
def test_figures_are_returned_without_a_window_and_readable_at_the_width_of_a_page():
    def windows():
        pyplot = sys.modules.get("matplotlib.pyplot")
        return pyplot.get_fignums() if pyplot else []

    before = windows()
    figures = [draw(Runs([make_results()]), n) for draw in (cascade_figure, compression_figure) for n in (1, 2)]
    assert all(f.dpi == 80 and f.canvas.manager is None for f in figures)
    assert all(f.get_figwidth() * f.dpi <= 900 for f in figures)
    assert windows() == before
    nothing = Runs([make_results(TINY, drop=[m.name for m in TINY.models()])])
    assert cascade_figure(nothing) is None and compression_figure(nothing) is None


def test_command_writes_report_and_figures(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the figures need matplotlib")
    folder = write(tmp_path / "run", make_results())
    assert main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ +1\.2 +S3 +progressive +S1 +0\.610 M +52 % ", shown, re.M)
    text = (folder / "report.md").read_text()
    for number in ("1-1", "1-2", 2, 3):
        assert (folder / f"figure{number}.png").read_bytes().startswith(b"\x89PNG")
        assert re.search(rf"^!\[Experiment [12], small: [^\]]+\]\(figure{number}\.png\)$", text, re.M)
    assert len(list(folder.glob("*.png"))) == 4
    assert "## Table 1" in text and "## Table 2" in text and "8 min 32 s" in text
    assert text.index("## Figure 1: the cascade\n\nEach box is") < text.index("## Figures 2 and 3: WER against")
    assert not list(folder.glob("*.tmp"))


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
