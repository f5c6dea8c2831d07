"""The same assignment as a notebook for nbgrader, which many schools have.

nbgrader runs hidden tests in the kernel of the student's code, so that a submission can read or change everything that
is used to grade it.  `python -m tutorial.assignments grade` does not have this weakness.
"""

import json
import re
import types

from . import build, inside, jail
from . import task as form
from .dialect import draw
from .grade import mark


def _cell(kind, identity, text, **settings):
    """A cell with nbgrader's metadata."""
    lines = text.strip("\n").splitlines(keepends=True)
    nbgrader = {"grade": False, "solution": False, "locked": False, "task": False, "schema_version": 3}
    nbgrader.update(grade_id=identity, **settings)
    cell = {"cell_type": kind, "id": identity.replace("_", "-"), "metadata": {"nbgrader": nbgrader}, "source": lines}
    return cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []}


def notebook(assignment, key):
    """source/aN/aN.ipynb: for each task its handout, the stub's docstrings, a cell to solve it in, and its tests."""
    dialect = draw(assignment, key["dialect"])
    name = assignment.name
    helpers = dialect.render(assignment.test_helpers)
    helpers = "import pytest\n" + re.sub(rf"^from {name} import (\([^)]*\)|.*)\n", "", helpers, flags=re.MULTILINE)
    cells = [
        _cell(
            "markdown",
            f"{name}_motivation",
            f"# {assignment.title}\n{dialect.render(assignment.motivation)}",
            locked=True,
        ),
        _cell("code", f"{name}_given", dialect.render(assignment.given), locked=True),
        _cell("code", f"{name}_helpers", helpers, locked=True),
    ]
    for k, task in enumerate(assignment.tasks, 1):
        heading = f"## {name}.{k} {task.name} ({task.points} points)\n{dialect.render(task.handout)}"
        stub = form.stub_code(task, dialect, f"{name}.{k}")
        cells.append(_cell("markdown", f"{name}_{k}_handout", f"{heading}\n```python\n{stub}```", locked=True))
        solution = f"### BEGIN SOLUTION\n{form.solution_code(task, dialect)}### END SOLUTION\n"
        cells.append(_cell("code", f"{name}_{k}_solution", solution, solution=True))
        tests = dialect.render(task.tests).strip("\n")
        calls = "\n".join(f"{test}()" for test in re.findall(r"^def (test_\w+)\(\):", tests, flags=re.MULTILINE))
        cells.append(_cell("code", f"{name}_{k}_visible", f"{tests}\n\n\n{calls}", locked=True))
        hidden = (
            f"# The points of {name}.{k}; what is graded here is added when your notebook is graded.\n"
            "### BEGIN HIDDEN TESTS\n"
            "from tutorial.assignments.nbgrader_export import points\n"
            f"points({name!r}, {k}, {key['secret']!r}, {key['dialect']!r}, globals())\n"
            "### END HIDDEN TESTS\n"
        )
        cells.append(_cell("code", f"{name}_{k}_points", hidden, grade=True, locked=True, points=task.points))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def write(name, key, to):
    """Write source/aN/aN.ipynb below `to`, nbgrader's folder `source`."""
    path = to / name / f"{name}.ipynb"
    build.write(path, json.dumps(notebook(form.load(name), key), indent=1, ensure_ascii=False) + "\n", private=True)
    return path


def points(name, number, secret, key, names):
    """What the functions in `names` earn in a task; prints what their author should know.  For hidden tests only."""
    assignment = form.load(name)
    dialect, task = draw(assignment, key), assignment.tasks[number - 1]
    reference = form.module(form.solution_file(assignment, dialect), "reference")
    groups = form.draw_cases(assignment, task, dialect, secret, reference)
    inputs = [case for group in groups.values() for case in group]
    job, blobs = jail.job_of(assignment.file, form.drive_code(task), task.outputs, inputs)
    student = types.SimpleNamespace(**names)
    data = b"".join(inside.answers(job, b"".join(blobs), student))
    grade = mark(assignment, task, dialect, groups, jail.Ended("itself", data), reference)
    for note in grade.notes:
        print(note)
    return round(grade.points, 2)
