"""What an assignment is made of.  Everything that students, teachers and the grader get is built from these objects.

An assignment is one file, a1.py to a6.py, with an `ASSIGNMENT`.  Its texts hold «markers» where a convention of the
class's dialect belongs (dialect.py).  A task's `code` is its solution; the students' stub is the same code with the
bodies of its functions taken out, and a mutant is the same code with a line or two exchanged.  So nothing is written
twice.
"""

import ast
import importlib.util
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import inside

NAMES = ("a1", "a2", "a3", "a4", "a5", "a6")
CORE = "every group"
MiB = 2**20


class Output(NamedTuple):
    """One array that a task's function returns."""

    name: str  # "alpha": what feedback calls it
    dtype: str  # "float64" or "int64"
    dimensions: int  # 0 for a number


class Mutant(NamedTuple):
    """A plausible mistake: the solution, with each `old` of changes (it stands there exactly once) made `new`."""

    name: str
    sentence: str  # completes "Your answers are ..." (or "It ends ..."); it tells the mistake and no input
    changes: list  # [(old, new), ...]
    # A mistake that shows in no value: "time" for one that hangs, "memory" for one that needs too much.  The grader
    # never runs it; a submission that ends in this way gets the sentence.
    ends: str = ""
    margin: float = 100.0  # on some case its error is at least so many tolerances; 10 for mistakes of float32


@dataclass(frozen=True)
class Task:
    """One function for students to write."""

    name: str  # a heading: "Enumerating the paths"
    points: int
    hours: float  # how long a student is expected to take
    function: str  # what students write: a function, which is called unless `drive` says otherwise, or a class
    code: str  # the solution: functions or classes with docstrings; those whose names start with _ are not in the stub
    outputs: tuple  # of Output
    tolerance: float  # of |answer - expected| / max(1, |expected|); integers must be equal
    cases: Callable  # (rng, dialect, solution) -> {group: [tuple of inputs, ...]}; CORE belongs to each group
    oracle: Callable  # (dialect, *inputs) -> the outputs, computed independently: only tests call it
    mutants: tuple  # three or more
    handout: str  # Markdown: formulas
    tests: str  # visible tests, in pytest's form
    notebook: str = ""  # cells in percent form (# %% and # %% [markdown]): the picture of the student's own result
    drive: str = ""  # code of drive(student, *inputs), where one call of `function` is not enough (streams)
    memory: int = 2048 * MiB  # what the student's process may take beyond numpy itself, in bytes


@dataclass(frozen=True)
class Assignment:
    """Tasks that are handed out, and handed in, as one file."""

    name: str  # "a4"
    title: str
    conventions: dict  # of dialect.Dialect
    given: str  # the top of the students' file: imports, constants and functions that they are given
    tasks: tuple  # of Task, 100 points in all
    motivation: str  # Markdown: opens the handout
    debugging: str  # Markdown: how to find one's mistakes
    question: str  # the written question
    rubric: str  # for the teacher only
    notebook: str  # cells in percent form: the theory
    test_helpers: str  # the top of the visible tests: imports and examples
    package_files: tuple = ()  # files of mini_pkd that solve the same: compared with submissions

    @property
    def file(self):
        return f"{self.name}.py"


def exists(name):
    """Is this assignment part of this copy of the project?"""
    return importlib.util.find_spec(f".{name}", __package__) is not None


def load(name):
    """The assignment of this name."""
    return importlib.import_module(f".{name}", __package__).ASSIGNMENT


# --- texts ----------------------------------------------------------------------------------------------------------


def solution_code(task, dialect, mutant=None):
    """The task's solution in this dialect, or a mutant of it.

    ValueError for a mutant whose lines are not in the solution exactly once.
    """
    code = dialect.render(task.code)
    for old, new in mutant.changes if mutant else ():
        old, new = dialect.render(old), dialect.render(new)
        if code.count(old) != 1:
            raise ValueError(f"{task.name}: {mutant.name!r}: {old!r} is in the solution {code.count(old)} times")
        code = code.replace(old, new)
    return code.strip("\n") + "\n"


def stub_code(task, dialect, number):
    """The solution without its bodies: signatures, docstrings and a NotImplementedError each."""
    code = solution_code(task, dialect)
    lines = code.splitlines()
    pieces = []

    def empty(node):
        """Lines of a function or a class, as far as its docstring."""
        start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
        if not ast.get_docstring(node):
            raise ValueError(f"{task.name}: {node.name} has no docstring")
        end = node.body[0].end_lineno
        found = lines[start:end]
        if isinstance(node, ast.ClassDef):
            for inner in node.body[1:]:
                if isinstance(inner, ast.FunctionDef) and (inner.name == "__init__" or inner.name[0] != "_"):
                    found += ["", *empty(inner)]
            return found
        indent = " " * (node.body[0].col_offset)
        return [*found, f'{indent}raise NotImplementedError("{number}")']

    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            pieces.append("\n".join(empty(node)))
    return "\n\n\n".join(pieces) + "\n"


def file_code(assignment, dialect, codes):
    """aN.py, of one code for each task."""
    parts = [dialect.render(assignment.given).strip("\n") + "\n"]
    for k, (task, code) in enumerate(zip(assignment.tasks, codes, strict=True), 1):
        parts.append(f"# --- {assignment.name}.{k} {task.name} ({task.points} points) ---\n\n\n{code}")
    return "\n\n".join(parts)


def solution_file(assignment, dialect, task=None, mutant=None):
    """aN.py as the reference has it, with a mutant of one task if given."""
    codes = [solution_code(each, dialect, mutant if each is task else None) for each in assignment.tasks]
    return file_code(assignment, dialect, codes)


def stub_file(assignment, dialect):
    """aN.py as students get it."""
    numbered = enumerate(assignment.tasks, 1)
    return file_code(assignment, dialect, [stub_code(task, dialect, f"{assignment.name}.{k}") for k, task in numbered])


# --- running trusted code -------------------------------------------------------------------------------------------


def module(text, name):
    """The module of this source: the reference or one of its mutants, never a student's."""
    made = types.ModuleType(name)
    exec(compile(text, f"<{name}>", "exec"), vars(made))
    return made


def drive_code(task):
    """Code of drive(student, *inputs), which runs in the jail and here alike."""
    return task.drive or f"def drive(student, *inputs):\n    return student.{task.function}(*inputs)\n"


def answer(task, trusted, inputs):
    """The arrays that a trusted module answers, or the exception that it raises (a mutant may)."""
    scope = {}
    exec(drive_code(task), scope)
    blobs = []
    encoded = inside.encode(tuple(inputs), blobs)
    copies = inside.decode(encoded, inside.taker(b"".join(blobs)))  # the code may write into its inputs
    try:
        with np.errstate(all="ignore"):
            return inside.as_arrays(scope["drive"](trusted, *copies), task.outputs)
    except Exception as error:
        return error


def draw_cases(assignment, task, dialect, secret, solution):
    """{group: [inputs, ...]} of a task, CORE first; a function of the secret and nothing else."""
    from .dialect import generator

    cases = task.cases(generator("cases", secret, assignment.name, task.name), dialect, solution)
    return {CORE: cases.pop(CORE, []), **cases}


def error(found, expected):
    """The largest error of arrays against those expected, as a Task's tolerance measures it; inf for another shape."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        if a.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(a, b) else np.inf)
            continue
        a, b = np.atleast_1d(a, b)
        with np.errstate(all="ignore"):
            errors = np.abs(a - b) / np.maximum(1.0, np.abs(b))
        errors[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0  # inf equals inf; a mutant's nan is known by its nan
        errors[np.isnan(errors)] = np.inf
        worst = max(worst, errors.max(initial=0.0))
    return worst
