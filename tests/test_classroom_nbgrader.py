"""The export for nbgrader: the solution gets full marks, the notebook that students get gets none."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from tutorial.assignments import nbgrader_export
from tutorial.assignments import task as form

NAMES = [name for name in form.NAMES if form.exists(name)]
KEY = {"secret": "s", "dialect": "autumn"}
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def release(book):
    """As `nbgrader generate_assignment` does it: solutions and hidden tests are cut out."""
    for cell in book["cells"]:
        lines = cell["source"]
        for what, instead in (("SOLUTION", ["raise NotImplementedError()\n"]), ("HIDDEN TESTS", [])):
            if f"### BEGIN {what}\n" in lines:
                start = lines.index(f"### BEGIN {what}\n")
                lines[start:] = instead
    return book


def total(book, hidden):
    """The points of a notebook whose cells are run one after the other; an error ends its cell only."""
    scope, points = {}, 0
    with contextlib.redirect_stdout(io.StringIO()):
        for cell, complete in zip(book["cells"], hidden["cells"], strict=True):
            if cell["cell_type"] != "code":
                continue
            settings = cell["metadata"]["nbgrader"]
            *lines, last = [line for line in complete["source"] if not line.startswith("#")] or ["None"]
            if settings["grade"]:
                exec("".join(lines), scope)
                points += eval(last, scope)
            else:
                with contextlib.suppress(Exception):
                    exec("".join(cell["source"]), scope)
    return points


@pytest.mark.parametrize("name", NAMES)
def test_solution_and_blank(name):
    assignment = form.load(name)
    assert total(nbgrader_export.notebook(assignment, KEY), nbgrader_export.notebook(assignment, KEY)) == 100
    blank = release(nbgrader_export.notebook(assignment, KEY))
    assert KEY["secret"] not in [line for cell in blank["cells"] for line in cell["source"]]
    assert not any("points(" in line for cell in blank["cells"] for line in cell["source"])
    assert total(blank, nbgrader_export.notebook(assignment, KEY)) == 0


def test_with_nbgrader_itself(tmp_path, monkeypatch):
    """generate, then grade two students: one handed in the solution, the other what was handed out."""
    pytest.importorskip("nbgrader", reason="nbgrader is not installed (extra nbgrader)")
    name = "a4"
    (tmp_path / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'course'\n")
    path = nbgrader_export.write(name, KEY, tmp_path / "source")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(nbgrader_export.__file__))))
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")  # nbgrader calls alembic
    environment = {**os.environ, "PYTHONPATH": root, "JUPYTER_PLATFORM_DIRS": "1"}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run("generate_assignment", name)
    blank = (tmp_path / "release" / name / f"{name}.ipynb").read_text()
    assert "HIDDEN" not in blank and "points(" not in blank
    for student, text in (("ada", path.read_text()), ("bob", blank)):
        folder = tmp_path / "submitted" / student / name
        folder.mkdir(parents=True)
        (folder / f"{name}.ipynb").write_text(text)
    run("autograde", name)
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        scores = {each.student.id: each.score for each in book.assignment_submissions(name)}
    assert scores == {"ada": 100, "bob": 0}, json.dumps(scores)
