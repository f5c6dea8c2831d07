"""The assignments themselves: solutions against independent oracles, mutants far from them, stubs, visible tests."""

import ast
import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tutorial.assignments import task as form
from tutorial.assignments.build import notebook, write_release
from tutorial.assignments.dialect import MARKER, Dialect, draw

NAMES = [name for name in form.NAMES if form.exists(name)]
TASKS = [(name, k) for name in NAMES for k in range(len(form.load(name).tasks))]
KEYS = [None, "autumn", "spring"]
FEW = [(None, 0), ("autumn", 1), ("spring", 2)]
TWENTY = [(None if secret % 4 == 0 else f"key {secret}", secret) for secret in range(20)]


def reference(assignment, dialect):
    return form.module(form.solution_file(assignment, dialect), "reference")


def each_answer(assignment, task, dialect, secret):
    """(group, inputs, the reference's answer) of every case."""
    solution = reference(assignment, dialect)
    for group, cases in form.draw_cases(assignment, task, dialect, secret, solution).items():
        for inputs in cases:
            expected = form.answer(task, solution, inputs)
            assert not isinstance(expected, Exception), (group, expected)
            yield group, inputs, expected


def check(name, k, key, secret):
    """Solution and oracle within a hundredth of the tolerance; each mutant far outside of it in every group."""
    assignment = form.load(name)
    task, dialect = assignment.tasks[k], draw(assignment, key)
    cases = list(each_answer(assignment, task, dialect, secret))
    for group, inputs, expected in cases:
        result = task.oracle(dialect, *inputs)
        result = result[0] if len(task.outputs) == 1 and isinstance(result, tuple) else result
        found = form.inside.as_arrays(result, task.outputs)
        assert form.error(expected, found) <= task.tolerance / 100, group
        assert not any(np.isnan(array).any() for array in expected), group
    for mutant in task.mutants:
        if mutant.ends:
            continue
        wrong = form.module(form.solution_file(assignment, dialect, task, mutant), "mutant")
        errors = {}
        for group, inputs, expected in cases:
            answer = form.answer(task, wrong, inputs)
            far = np.inf if isinstance(answer, Exception) else form.error(answer, expected)
            errors[group] = max(errors.get(group, 0.0), far)
        core = errors.pop(form.CORE, 0.0)
        nearest = min([max(core, other) for other in errors.values()])
        assert nearest >= mutant.margin * task.tolerance, f"{mutant.name}: an error of {nearest}"


@pytest.mark.parametrize("name, k", TASKS)
@pytest.mark.parametrize("key, secret", FEW)
def test_solution_and_mutants_against_the_oracle(name, k, key, secret):
    check(name, k, key, secret)


@pytest.mark.slow
@pytest.mark.parametrize("name, k", TASKS)
def test_twenty_secrets(name, k):
    for key, secret in TWENTY:
        check(name, k, key, secret)


@pytest.mark.parametrize("name, k", TASKS)
def test_two_mutants_are_not_the_same_mistake(name, k):
    """Otherwise a student would be told the wrong sentence."""
    assignment = form.load(name)
    task, dialect = assignment.tasks[k], draw(assignment, None)
    inputs = [inputs for _, inputs, _ in each_answer(assignment, task, dialect, 0)]
    answers = {}
    for mutant in task.mutants:
        if not mutant.ends:
            wrong = form.module(form.solution_file(assignment, dialect, task, mutant), "mutant")
            answers[mutant.name] = [form.answer(task, wrong, case) for case in inputs]
    for one, other in itertools.combinations(answers, 2):
        same = [
            not isinstance(a, Exception) and not isinstance(b, Exception) and form.error(a, b) <= task.tolerance
            for a, b in zip(answers[one], answers[other], strict=True)
        ]
        assert not all(same), f"{one} and {other}"


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    """100 points; three mutants a task, sentences without a stop; two groups or more; no marker left in any dialect."""
    assignment = form.load(name)
    plain = Dialect(assignment.conventions)
    assert assignment.name == name and sum(task.points for task in assignment.tasks) == 100
    for task in assignment.tasks:
        assert len(task.mutants) >= 3 and task.hours > 0 and task.tolerance > 0  # or any margin of it would be 0
        assert not [mutant.sentence for mutant in task.mutants if mutant.sentence[-1] in ".!" or not mutant.sentence]
        cases = form.draw_cases(assignment, task, plain, 0, reference(assignment, plain))
        assert len([group for group in cases if group != form.CORE]) >= 2
        assert all(cases.values())
    names = [name for task in assignment.tasks for name in re.findall(r"^def (test_\w+)", task.tests, re.MULTILINE)]
    assert len(set(names)) == len(names), "a visible test hides another one of its name"
    for convention, options in assignment.conventions.items():
        assert len(options) >= 2 and len({frozenset(words) for words in options.values()}) == 1, convention


@pytest.mark.parametrize("name, k", TASKS)
def test_what_the_package_says_is_wrong_in_a_dialect(name, k):
    """The reference of the package's own conventions, pasted, gets nothing."""
    assignment = form.load(name)
    task, plain = assignment.tasks[k], Dialect(assignment.conventions)
    assert MARKER.search(task.code), "no convention changes this task"
    pasted = reference(assignment, plain)
    for key in ("autumn", "spring", "summer"):
        dialect = draw(assignment, key)
        groups = {}
        for group, inputs, expected in each_answer(assignment, task, dialect, 0):
            answer = form.answer(task, pasted, inputs)
            right = not isinstance(answer, Exception) and form.error(answer, expected) <= task.tolerance
            groups[group] = groups.get(group, True) and right
        core = groups.pop(form.CORE, True)
        assert not any(core and right for right in groups.values()), (key, str(dialect), groups)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", KEYS)
def test_stub_is_the_solution_without_its_bodies(name, key):
    assignment = form.load(name)
    dialect = draw(assignment, key)
    solution, stub = (ast.parse(make(assignment, dialect)) for make in (form.solution_file, form.stub_file))
    public = [node.name for node in solution.body if hasattr(node, "name") and not node.name.startswith("_")]
    given = {node.name for node in ast.parse(dialect.render(assignment.given)).body if hasattr(node, "name")}
    assert [node.name for node in stub.body if hasattr(node, "name") and not node.name.startswith("_")] == public
    for node in stub.body:
        if isinstance(node, ast.FunctionDef) and node.name not in given:
            assert ast.get_docstring(node) and isinstance(node.body[1], ast.Raise) and len(node.body) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", KEYS[:2])
def test_visible_tests(name, key, tmp_path):
    """They pass for the solution and fail for the stub, all of them; `pytest -m a4_2` runs those of task 2 only."""
    assignment = form.load(name)
    dialect = draw(assignment, key)
    write_release(assignment, dialect, tmp_path)

    def outcome(*options):
        run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name}.py", *options]
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300).stdout

    blank = outcome()
    assert " passed" not in blank and " failed" in blank, blank
    (tmp_path / assignment.file).write_text(form.solution_file(assignment, dialect), encoding="utf-8")
    solved = outcome()
    assert " passed" in solved and " failed" not in solved and "warning" not in solved and "error" not in solved, solved
    second = outcome("-m", f"{name}_2")
    assert f"{len(re.findall(r'^def test_', assignment.tasks[1].tests, flags=re.MULTILINE))} passed, " in second, second
    assert all(re.search(r"^def test_", task.tests, flags=re.MULTILINE) for task in assignment.tasks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", KEYS[:2])
def test_notebook_runs_on_the_solution(name, key, tmp_path, monkeypatch):
    """As plain Python, so that neither jupyter nor a kernel is needed; magics are left out."""
    pytest.importorskip("matplotlib").use("Agg")
    assignment = form.load(name)
    dialect = draw(assignment, key)
    (tmp_path / assignment.file).write_text(form.solution_file(assignment, dialect), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    scope = {}
    for cell in notebook(assignment, dialect)["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(line for line in cell["source"] if not line.startswith("%"))
            exec(compile(code, f"{name}.ipynb", "exec"), scope)
    sys.modules.pop(name, None)
