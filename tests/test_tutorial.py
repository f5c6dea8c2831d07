"""The tutorial: its sources, what becomes of them, its pictures and exercises.  CI runs the notebooks themselves."""

import ast
import doctest
import importlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from invented_results import make_results

from mini_pkd import UserError
from mini_pkd.features import mfcc, stages
from mini_pkd.results import Runs
from mini_pkd.scales import TINY
from tutorial import build, exercise, models, utterance
from tutorial.exercise import Wrong, check

needs_jupytext = pytest.mark.skipif(not find_spec("jupytext"), reason='needs jupytext: pip install -e ".[tutorial]"')
needs_matplotlib = pytest.mark.skipif(not find_spec("matplotlib"), reason="the pictures need matplotlib")
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in build.sources()}
FOLDER = Path(build.__file__).parent

# --- sources --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_reads_like_the_others(name):
    text = SOURCES[name]
    assert text.startswith(f"# %% [markdown]\n# # {name[:2]} "), "it begins with its title"
    assert len(re.findall(r"^# \*\*Exercise \d\.\*\*", text, re.M)) == len(re.findall(r"^check\(", text, re.M)) >= 2
    assert "**Break it" in text or "## Break it" in text
    assert "# ## The number\n" in text and re.search(r"^assert ", text, re.M)
    assert not build.OWN_PATH.search(text)


@pytest.mark.parametrize("name", SOURCES)
def test_no_algorithm_in_a_notebook(name):
    """No function or class of more than ten lines, and no module that draws, trains or computes for itself."""
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
            assert node.end_lineno - node.lineno < 10, f"{node.name} is too long for a notebook"
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"matplotlib", "torch", "scipy"}


@pytest.mark.parametrize("name", SOURCES)
def test_every_imported_name_exists(name):
    for node in ast.walk(ast.parse(SOURCES[name])):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("mini_pkd", "tutorial"):
            if node.module == "tutorial" and not find_spec("matplotlib"):
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("name", SOURCES)
def test_links_lead_somewhere(name):
    """To notebooks that there are, or that the index announces."""
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\((\d\d_\w+)\.ipynb\)", SOURCES[name]):
        assert f"{link}.ipynb" in index


# --- notebooks ------------------------------------------------------------------------------------


@needs_jupytext
@pytest.mark.parametrize("name", SOURCES)
def test_solutions_are_folded_and_learners_get_blanks(name):
    solved, blank = build.notebook(FOLDER / name), build.notebook(FOLDER / name, blank=True)
    assert len(solved.cells) == len(blank.cells)
    assert not any("SOLUTION" in cell.source for cell in blank.cells)
    changed = [(a, b) for a, b in zip(solved.cells, blank.cells, strict=True) if a.source != b.source]
    assert len(changed) >= 2
    for a, b in changed:
        assert a.metadata.jupyter.source_hidden and "...  # your turn" in b.source and "check(" in b.source
        ast.parse(b.source)


@needs_jupytext
def test_what_a_solution_becomes(tmp_path):
    def blank(*lines):
        path = tmp_path / "20_x.py"
        path.write_text("\n".join(["# %%", *lines]))
        return build.notebook(path, blank=True).cells[-1].source

    assert (
        blank("# SOLUTION: a = ...", "a = 1", "", "b = 2", "# END SOLUTION", "c = 3") == "a = ...  # your turn\nc = 3"
    )
    assert blank("def f():", "    # SOLUTION", "    return 1", "    # END SOLUTION") == "def f():\n    ...  # your turn"
    two = blank("# SOLUTION: a = ...", "a = 1", "# END SOLUTION", "# SOLUTION: b = ...", "b = 1", "# END SOLUTION")
    assert two == "a = ...  # your turn\nb = ...  # your turn"
    for wrong in (["# SOLUTION", "a = 1"], ["a = 1", "# END SOLUTION"], ["# SOLUTION", "# SOLUTION", "# END SOLUTION"]):
        with pytest.raises(UserError, match="pair them"):
            blank(*wrong)


@needs_jupytext
def test_learner_copies_never_replace_answers(tmp_path, capsys):
    folder = tmp_path / "copies"
    assert build.main(["--learner", str(folder)]) == 0
    assert sorted(p.stem for p in folder.glob("*")) == [Path(name).stem for name in SOURCES]
    assert all("# SOLUTION" not in p.read_text(encoding="utf-8") for p in folder.glob("*"))
    assert build.main(["--learner", str(folder)]) == 1 and build.main(["--learner", str(FOLDER)]) == 1
    assert "name a new folder" in capsys.readouterr().err


SMALL = '# %% [markdown]\n# # 21 Small\n# %%\nprint("one")\n# SOLUTION: a = ...\na = 1\n# END SOLUTION\n'


def printed(text):
    from nbformat import v4

    return [v4.new_output("stream", text=text)]


@needs_jupytext
def test_a_notebook_is_stale_when_its_source_has_changed_and_not_when_its_outputs_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    path = tmp_path / "21_small.py"
    path.write_text(SMALL)
    assert "is not there" in build.stale(path)
    made = build.notebook(path)
    build.target(path).write_text(build.as_text(made, "21"))
    assert build.stale(path) is None
    made.cells[-1].outputs = printed("another time: 17 ms")
    build.target(path).write_text(build.as_text(made, "21"))
    assert build.main(["--check"]) == 0
    path.write_text(SMALL.replace("one", "two"))
    assert build.main(["--check"]) == 1 and "is not what 21_small.py makes now" in capsys.readouterr().err
    path.unlink()
    assert build.main(["--check"]) == 1 and "has no source" in capsys.readouterr().err


@needs_jupytext
def test_too_large_or_at_home(tmp_path):
    path = tmp_path / "21_small.py"
    path.write_text(SMALL)
    for output, word in (("x" * build.LARGEST, "draw less"), ("see /home/somebody/file", "a path of this machine")):
        made = build.notebook(path)
        made.cells[-1].outputs = printed(output)
        with pytest.raises(UserError, match=word):
            build.as_text(made, "21")
    made.cells[-1].outputs = printed(f"{build.FOLDER.parent}/data_small and 3/4 of /a")
    assert "./data_small" in build.as_text(made, "21")


@needs_jupytext
def test_only_a_known_repository_is_cloned_or_gets_a_badge(monkeypatch):
    """A reader's click must not install what somebody else put under an address that we made up."""
    path = build.sources()[0]
    assert build.REPOSITORY is None
    assert "git clone" not in str(build.notebook(path)) and "Open in Colab" not in str(build.notebook(path))
    monkeypatch.setattr(build, "REPOSITORY", "somebody/mini_pkd")
    badge, setup = build.notebook(path).cells[:2]
    assert "github/somebody/mini_pkd/blob/main/tutorial/01_" in badge.source
    assert "git clone --quiet --depth 1 https://github.com/somebody/mini_pkd " in setup.source
    assert setup.metadata == {"jupyter": {"source_hidden": True}}


@needs_jupytext
@pytest.mark.slow
@pytest.mark.skipif(not find_spec("nbclient") or not find_spec("ipykernel"), reason="needs nbclient and ipykernel")
def test_executing_keeps_outputs_and_names_the_cell_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "SETUP", "# IMPORT")  # the notebooks' own first cell is run by CI
    path = tmp_path / "21_small.py"
    path.write_text(SMALL + "print(a + 1)\n")
    assert build.main(["--execute"]) == 0 and build.main(["--check"]) == 0
    made = json.loads(build.target(path).read_text())
    assert [cell.get("outputs", [{}])[0]["text"] for cell in made["cells"][-1:]] == [["one\n", "2\n"]]
    assert "/" not in json.dumps(made["metadata"])
    path.write_text(SMALL.replace("a = 1", "a = 1 / 0"))
    assert build.main(["--try", "21"]) == 1
    assert "21_small.py does not run" in (error := capsys.readouterr().err) and "a = 1 / 0" in error
    path.write_text(SMALL + 'print("Not answered yet")\n')
    assert build.main(["--try"]) == 1 and build.main(["--try", "22"]) == 1
    assert "there is no notebook 22" in capsys.readouterr().err


@needs_jupytext
def test_the_notebooks_are_fresh_small_and_free_of_this_machine():
    for name in SOURCES:
        assert build.stale(FOLDER / name) is None


# --- what the notebooks share ---------------------------------------------------------------------


def test_the_utterance_follows_its_rule():
    spoken = utterance.load()
    first = next(
        heard for u in utterance.part("test-clean") if len(u.text.split()) == 5
        and 2.2 <= (heard := utterance.hear(u)).seconds <= 2.6
    )  # fmt: skip
    assert spoken.id == first.id and np.array_equal(spoken.wave, first.wave)
    assert spoken.path.stat().st_size < 8000 and not spoken.wave.flags.writeable


def test_a_batch_is_the_utterances_end_to_end():
    first, recogniser = utterance.load(), models.load("T1")
    batch = utterance.batch([first, first._replace(id="b", text="SIX")], recogniser)
    six = recogniser.bpe.encode("SIX")
    assert batch.ids == [first.id, "b"] and list(batch.labels) == [*recogniser.bpe.encode(first.text), *six]
    assert list(batch.label_lengths) == [len(batch.labels) - len(six), len(six)]
    rows = recogniser.normaliser(mfcc(first.wave))
    assert list(batch.lengths) == [len(rows)] * 2 and np.array_equal(batch.features, np.concatenate([rows, rows]))


def test_the_run_of_several_seeds_has_the_models_of_the_tutorial():
    assert len(models.seeds().seeds) >= 3 and models.seeds().names() == models.runs().names()


def test_models_that_are_missing_and_models_that_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "FOLDER", tmp_path / "models")
    for call in (lambda: models.load("T1"), models.runs, lambda: models.decoded("T1"), lambda: models.megabytes("T1")):
        with pytest.raises(UserError, match=r"tutorial.build --models runs/tiny"):
            call()
    run = tmp_path / "run"
    run.mkdir()
    (run / "results.json").write_text(json.dumps(make_results(TINY)))
    with pytest.raises(UserError, match="finish the run"):
        models.copy_from(run)
    names = [model["name"] for model in make_results(TINY)["models"]]
    for name in names:
        (run / name).mkdir()
        for file in models.FILES:
            (run / name / file).write_text(f"{name} {file}")
    assert build.main(["--models", str(run)]) == 0
    assert models.decoded(names[0]).read_text() == f"{names[0]} test-clean.txt" and set(models.runs().names()) == set(
        names
    )


def test_the_examples_of_check():
    failed, tried = doctest.testmod(exercise)
    assert tried == 2 and not failed


def test_check_says_right_wrong_and_not_yet(capsys):
    check(2.0, 2, "hint")
    check(np.arange(3.0) + 1e-9, np.arange(3), "hint")
    check("AB", "AB", "hint")
    check(lambda x: x + 1, lambda f: f(1) == 2, "hint")
    assert capsys.readouterr().out.count("Right") == 4
    check(..., 2, "hint")
    check(lambda x: ..., lambda f: f(1) + 1 == 2, "hint")
    assert capsys.readouterr().out.count("Not answered yet") == 2
    for answer, expected in ((2.1, 2), (np.nan, 2), ("A", "B"), ([1], [1, 2]), (np.ones(2), np.ones(3)), (True, False)):
        with pytest.raises(Wrong, match="Not right yet.*Hint: look again"):
            check(answer, expected, "look again")
    check(1.0004, 1, "hint", tolerance=1e-3)
    with pytest.raises(Wrong):
        check(234, 233, "hint", tolerance=0)
    with pytest.raises(Wrong, match="ends in ZeroDivisionError.*Hint: look again") as error:
        check(lambda: 1 / 0, lambda f: f() == 1, "look again")
    assert error.value._render_traceback_() == [str(error.value)]


@needs_matplotlib
def test_every_picture_is_drawn_in_one_style_and_small():
    from tutorial import draw

    rng = np.random.default_rng(0)
    wave = (0.1 * rng.standard_normal(37_521)).astype(np.float32)
    T, U = 30, 4
    grid, names, path = rng.random((T, U + 1)), list("ABCD"), [(0, 0, True), (0, 1, False), (1, 1, False)]
    figures = [
        draw.sound(wave, stages(wave)),
        draw.masks(rng.standard_normal((90, 40)), np.zeros((90, 40))),
        draw.rows_apart({"a": rng.random(9), "b": rng.random(9)}),
        draw.attention(rng.random((4, T, T)), 0.04),
        draw.attention(rng.random((1, 1, 1)), 0.04),
        draw.lattices(wave, {"one": grid}, names),
        draw.lattices(wave, {"one": grid, "two": grid}, names, [path, None]),
        draw.toy_paths([path], [0.5], 2, names[:1]),
        draw.toy_numbers({"alpha": grid[:3, :2], "beta": grid[:3, :2]}, names[:1]),
        draw.toy_arrows(rng.random((2, 2, 3)), [1], names[:1]),
        draw.distributions({"T1": grid[0], "S1": grid[1]}, list("-ABCD")),
        draw.where_kl_lies(grid, grid, names),
        draw.strip({str(i): grid for i in range(6)}, names),
        draw.curves({"a": rng.random(9)}, level=0.5),
        draw.blanks({"T1": (grid, None), "S1": (grid, grid)}, names, path),
        draw.wer_against_size(Runs([make_results(TINY)])),
    ]
    for figure in figures:
        picture = draw.png(figure)
        assert picture.startswith(b"\x89PNG") and len(picture) < 120_000
        assert figure.get_dpi() == draw.DPI and figure.get_figwidth() <= draw.WIDTH
        for axes in figure.axes:
            if axes.axison:
                assert axes.get_xlabel() or axes.get_ylabel() or axes.get_title("left"), "a panel says what it shows"


@pytest.mark.skipif(not find_spec("IPython"), reason='needs IPython: pip install -e ".[tutorial]"')
@needs_matplotlib
def test_a_picture_comes_with_its_caption_and_a_sound_as_the_file_that_it_is(monkeypatch):
    import IPython.display

    from tutorial import draw

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda what, **options: shown.append((what, options)))
    draw.show(draw.rows_apart({"a": np.ones(3)}), "A caption.")
    draw.hear(utterance.load().path)
    (picture, options), (caption, _), (sound, _) = shown
    assert picture["text/plain"] == options["metadata"]["image/png"]["alt"] == "A caption."
    assert picture["image/png"].startswith(b"\x89PNG") and caption.data == "*A caption.*"
    html = sound._repr_html_()
    assert "audio/ogg" in html and len(html) < 12_000
