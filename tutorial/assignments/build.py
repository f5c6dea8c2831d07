"""From an assignment's one source to what students get and what the teacher keeps.

DIR/students/a4/            a4.ipynb, a4.py, test_a4.py, handout.md and pytest.ini: give this away as it is
DIR/teacher/key.json        the secret that inputs are drawn from, and the dialect: `grade` wants it
DIR/teacher/a4/             the solution, the mutants that the grader knows, the rubric
DIR/teacher/gradescope/     a4.zip: the autograder to upload
"""

import hashlib
import json
import os
import re
import secrets
import zipfile
from pathlib import Path

from mini_pkd import UserError

from . import task as form
from .dialect import draw

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


# --- texts ----------------------------------------------------------------------------------------------------------


def visible_tests(assignment, dialect):
    """test_aN.py: the visible tests of all tasks, each marked aN_k."""
    parts = [
        f'"""Visible tests; the grader has others.  `pytest -m {assignment.name}_1` runs those of one task.\n\n'
        "Some lines look odd (`0 + 11`, axes that are exchanged): they are written for your class's conventions.\n"
        '"""\n'
    ]
    helpers = dialect.render(assignment.test_helpers).strip("\n")
    numpy = "import numpy as np\n"
    parts.append(helpers.replace(numpy, numpy + "import pytest\n", 1) + "\n")
    for k, task in enumerate(assignment.tasks, 1):
        tests = dialect.render(task.tests).strip("\n") + "\n"
        mark = f"@pytest.mark.{assignment.name}_{k}\ndef test_"
        tests = re.sub(r"^def test_", lambda _, mark=mark: mark, tests, flags=re.MULTILINE)
        parts.append(f"\n# --- {assignment.name}.{k} {task.name} ---\n\n\n{tests}")
    return "\n".join(parts)


def handout(assignment, dialect):
    """handout.md: why, what, how many points and hours, how to find mistakes."""
    lines = [f"# Assignment {assignment.name[1:]}: {assignment.title}\n", dialect.render(assignment.motivation).strip()]
    lines.append("\n| task | points | hours expected |\n| --- | --- | --- |")
    for k, task in enumerate(assignment.tasks, 1):
        lines.append(f"| {assignment.name}.{k} {task.name} | {task.points} | {task.hours:g} |")
    lines.append(f"| together | 100 | {sum(task.hours for task in assignment.tasks):g} |\n")
    name = assignment.name
    lines.append(
        f"Write your functions in `{name}.py` and hand in this file only. It may import numpy and the standard "
        f"library. `python -m pytest test_{name}.py` runs the visible tests, `python -m pytest -m {name}_2` those "
        f"of {name}.2; `{name}.ipynb` shows what your functions do (`pip install numpy pytest notebook matplotlib`). "
        "Run its cells one by one: those of a task that is not solved stop with NotImplementedError.\n\n"
        "The grader calls each function on other inputs than the visible tests, in groups; a group pays all of its "
        "points or none. Ordinary cases belong to every group; the groups are edges, such as empty or long inputs. "
        "Every task is called by itself, with correct inputs, so a mistake in one costs nothing in the others. A task "
        "has 3 seconds of processor time for all cases: plain loops are fast enough unless its text says otherwise. "
        "Names, arguments and results must stay as they are; everything else in the file is yours.\n"
    )
    for k, task in enumerate(assignment.tasks, 1):
        lines.append(f"## {name}.{k} {task.name} ({task.points} points)\n")
        lines.append(f"Write `{task.function}`.\n\n{dialect.render(task.handout).strip()}\n")
    lines.append(f"## How to find mistakes\n\n{dialect.render(assignment.debugging).strip()}\n")
    lines.append(f"## A question to answer in writing\n\n{dialect.render(assignment.question).strip()}\n")
    return "\n".join(lines)


def cells_of(text):
    """(kind, lines) of each cell of a text in percent form: "# %%" and "# %% [markdown]" open a cell."""
    for piece in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, _, body = piece.partition("\n")
        lines = body.strip("\n").split("\n")
        if "[markdown]" in head:
            yield "markdown", [re.sub(r"^# ?", "", line) for line in lines]
        else:
            yield "code", [re.sub(r"^# (?=%)", "", line) for line in lines]


def notebook(assignment, dialect):
    """aN.ipynb as a dictionary, the same one each time."""
    cells = []
    for text in (assignment.notebook, *(task.notebook for task in assignment.tasks)):
        for kind, lines in cells_of(dialect.render(text)):
            source = [line + "\n" for line in lines[:-1]] + lines[-1:]
            digest = hashlib.sha256(f"{len(cells)}{''.join(source)}".encode()).hexdigest()[:8]
            cell = {"cell_type": kind, "id": digest, "metadata": {}, "source": source}
            cells.append(cell if kind == "markdown" else {**cell, "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def teacher_notes(assignment, dialect):
    """notes.md: dialect, mistakes that the grader knows by name, the written question with its rubric."""
    lines = [f"# {assignment.name}: for the teacher\n", f"Dialect: {dialect}\n"]
    lines.append("| task | points | hours | mistakes that the grader knows: your answers are ... |")
    lines.append("| --- | --- | --- | --- |")
    for k, task in enumerate(assignment.tasks, 1):
        known = "; ".join(f"**{mutant.name}**: {dialect.render(mutant.sentence)}" for mutant in task.mutants)
        lines.append(f"| {assignment.name}.{k} {task.name} | {task.points} | {task.hours:g} | {known} |")
    lines.append(f"\n## Written question\n\n{dialect.render(assignment.question).strip()}\n")
    lines.append(f"## Rubric\n\n{dialect.render(assignment.rubric).strip()}\n")
    return "\n".join(lines)


# --- folders --------------------------------------------------------------------------------------------------------


def write(path, text, private=False):
    """Write a text; a private file is readable by its owner only, from the beginning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if private:
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    else:
        path.write_text(text, encoding="utf-8")


def write_release(assignment, dialect, folder):
    """The folder that students get."""
    name = assignment.name
    write(folder / assignment.file, form.stub_file(assignment, dialect))
    write(folder / f"test_{name}.py", visible_tests(assignment, dialect))
    write(folder / "handout.md", handout(assignment, dialect))
    write(folder / f"{name}.ipynb", json.dumps(notebook(assignment, dialect), indent=1, ensure_ascii=False) + "\n")
    marks = "\n".join(f"    {name}_{k}: {task.name}" for k, task in enumerate(assignment.tasks, 1))
    write(folder / "pytest.ini", f"[pytest]\nmarkers =\n{marks}\n")


def write_teacher(assignment, dialect, folder, key):
    """What the teacher keeps: solution, notes, and an autograder for Gradescope."""
    write(folder / assignment.name / assignment.file, form.solution_file(assignment, dialect), private=True)
    write(folder / assignment.name / "notes.md", teacher_notes(assignment, dialect), private=True)
    archive = folder / "gradescope" / f"{assignment.name}.zip"
    write(archive, "", private=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for script in ("setup.sh", "run_autograder"):
            text = (HERE / "gradescope" / script).read_text("utf-8")
            file.writestr(script, text.replace("ASSIGNMENT", assignment.name))
        file.writestr("key.json", json.dumps(key))
        for package in ("mini_pkd", "tutorial/assignments"):
            for path in sorted((ROOT / package).glob("*.py")):
                file.write(path, f"{package}/{path.name}")
        file.writestr("tutorial/__init__.py", "")


def make_key(path, dialect):
    """The key of this folder.  One that is there already stays as it is, so that students' conventions do not change
    under their hands and earlier grades can be repeated."""
    if dialect == "":
        raise UserError("The dialect is empty; give a word, or leave --dialect out for the package's conventions.")
    if not path.exists():
        key = {"secret": secrets.token_hex(16), "dialect": dialect}
        write(path, json.dumps(key, indent=1) + "\n", private=True)
        return key
    key = json.loads(path.read_text("utf-8"))
    if dialect not in (None, key["dialect"]):
        raise UserError(
            f"{path.parent.parent} was built with the dialect {key['dialect']!r}; give the same, or another folder."
        )
    return key


def build(to, names, key=None):
    """Build these assignments into a folder, in the dialect of `key`, or else in the folder's or the package's."""
    to = Path(to)
    made = make_key(to / "teacher" / "key.json", key)
    os.chmod(to / "teacher", 0o700)
    for name in names:
        assignment = form.load(name)
        dialect = draw(assignment, made["dialect"])
        write_release(assignment, dialect, to / "students" / name)
        write_teacher(assignment, dialect, to / "teacher", made)
