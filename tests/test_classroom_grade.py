"""The grader: solution 100, stub 0, each mutant 0 in its task with its own sentence, and full marks elsewhere."""

import ast
import contextlib
import csv
import doctest
import itertools
import json
import os
import zipfile

import pytest

from mini_pkd import UserError
from tutorial.assignments import __main__ as command
from tutorial.assignments import dialect as dialects
from tutorial.assignments import grade, inside, jail, overlap, submission
from tutorial.assignments import task as form

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mutants divide by zero, and so on

NAMES = [name for name in form.NAMES if form.exists(name)]


class InProcess:
    """In place of a jail, for the solution and its mutants, which we trust: a hundred of them in the time of one."""

    kind = "none"

    @contextlib.contextmanager
    def cell(self, name, source):
        yield source

    def run(self, source, job, blobs):
        return jail.Ended("itself", b"".join(inside.frames(json.loads(json.dumps(job)), b"".join(blobs), source)))


def graded(assignment, dialect, secret, text, cage):
    return grade.grade_source(assignment, dialect, str(secret), text.encode(), cage)


@pytest.fixture(scope="module")
def cage():
    try:
        with jail.open_jail("auto", wall=20.0) as cage:  # 4 s are for machines that do nothing else
            yield cage
    except UserError as error:
        pytest.skip(str(error))


def says(task, mutant, dialect, mark):
    """Nothing earned, and the mutant's sentence, unless it already ends in an exception."""
    assert mark.points == 0, (task.name, mutant.name)
    if not any("raised" in note for note in mark.notes):
        assert f"Your answers are {dialect.render(mutant.sentence)}." in mark.notes, (task.name, mutant.name)


@pytest.mark.parametrize("name", NAMES)
def test_solution_stub_and_mutants(name):
    assignment = form.load(name)
    dialect = dialects.draw(assignment, "autumn")
    right = graded(assignment, dialect, "a", form.solution_file(assignment, dialect), InProcess())
    assert [mark.points for mark in right] == [task.points for task in assignment.tasks]
    assert not any(mark.notes for mark in right)
    blank = graded(assignment, dialect, "a", form.stub_file(assignment, dialect), InProcess())
    assert [mark.points for mark in blank] == [0] * len(blank)
    mistakes = [(task, mutant) for task in assignment.tasks for mutant in task.mutants if not mutant.ends]
    for task, mutant in mistakes:
        text = form.solution_file(assignment, dialect, task, mutant)
        marks = graded(assignment, dialect, "a", text, InProcess())
        for other, mark in zip(assignment.tasks, marks, strict=True):
            if other is task:
                says(task, mutant, dialect, mark)
            else:
                assert mark.points == other.points, (task.name, mutant.name, other.name)


@pytest.mark.parametrize("name", NAMES)
def test_no_task_needs_another(name):
    """No task's solution uses what another task defines, so a mistake in one costs nothing elsewhere, ever."""
    assignment = form.load(name)
    for key in (None, "autumn"):
        dialect = dialects.draw(assignment, key)
        trees = [ast.parse(form.solution_code(task, dialect)) for task in assignment.tasks]
        made = [{node.name for node in tree.body if hasattr(node, "name")} for tree in trees]
        used = [{node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} for tree in trees]
        for i, j in itertools.permutations(range(len(trees)), 2):
            assert not made[i] & used[j] and not made[i] & made[j], (i + 1, j + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name, k", [(name, k) for name in NAMES for k in range(len(form.load(name).tasks))])
def test_twenty_secrets(name, k):
    """Each task by itself, because none needs another."""
    assignment = form.load(name)
    task = assignment.tasks[k]
    for secret in range(20):
        dialect = dialects.draw(assignment, f"key {secret}" if secret % 4 else None)
        reference = form.module(form.solution_file(assignment, dialect), "reference")
        groups = form.draw_cases(assignment, task, dialect, str(secret), reference)
        inputs = [case for group in groups.values() for case in group]
        job = jail.job_of(assignment.file, form.drive_code(task), task.outputs, inputs)

        def earned(text, task=task, dialect=dialect, groups=groups, job=job, reference=reference):
            return grade.mark(assignment, task, dialect, groups, InProcess().run(text.encode(), *job), reference)

        right = earned(form.solution_file(assignment, dialect))
        assert right.points == task.points and not right.notes
        assert earned(form.stub_file(assignment, dialect)).points == 0
        for mutant in task.mutants:
            if not mutant.ends:
                says(task, mutant, dialect, earned(form.solution_file(assignment, dialect, task, mutant)))


@pytest.mark.parametrize("name", NAMES)
def test_in_the_jail(name, cage):
    """The solution, the stub, and the mutants that show in no value: they hang, or want too much memory."""
    assignment = form.load(name)
    dialect = dialects.draw(assignment, "autumn")
    full = [task.points for task in assignment.tasks]
    solved = graded(assignment, dialect, 0, form.solution_file(assignment, dialect), cage)
    assert [mark.points for mark in solved] == full, [mark.notes for mark in solved]
    blank = graded(assignment, dialect, 0, form.stub_file(assignment, dialect), cage)
    assert [mark.notes for mark in blank] == [["Not solved yet: it raises NotImplementedError."]] * len(full)
    for k, task in enumerate(assignment.tasks):
        for mutant in task.mutants:
            if mutant.ends:
                text = form.solution_file(assignment, dialect, task, mutant)
                marks = graded(assignment, dialect, 0, text, cage)
                assert [mark.points for mark in marks] == full[:k] + [0] + full[k + 1 :], (mutant.name, marks[k])
                assert f"It ends {dialect.render(mutant.sentence)}." in marks[k].notes


# --- a small assignment, for everything that does not depend on the content -----------------------------------------

SMALL = form.Assignment(
    name="a4",
    title="Two sums",
    conventions={"sign": {"plus": {"sign": ""}, "minus": {"sign": "-"}}},
    given='"""Two sums."""\n\nimport numpy as np\n',
    tasks=tuple(
        form.Task(
            name=f"sum of {name}",
            points=50,
            hours=1,
            function=name,
            code=f'\ndef {name}(x):\n    """Of x (N,) float64: a float."""\n    return «sign»np.sum({power})\n',
            outputs=(form.Output("total", "float64", 0),),
            tolerance=1e-9,
            cases=lambda rng, dialect, solution: {
                form.CORE: [(rng.standard_normal(5),)],
                "empty": [(rng.standard_normal(0),)],
                "long": [(rng.standard_normal(500),)],
            },
            oracle=lambda dialect, x: None,
            mutants=(form.Mutant("mean", "as if a mean were wanted", [("np.sum", "np.mean")]),),
            handout="",
            tests="",
        )
        for name, power in (("values", "x"), ("squares", "x**2"))
    ),
    motivation="",
    debugging="",
    question="",
    rubric="",
    notebook="",
    test_helpers="",
)
PLAIN = dialects.Dialect(SMALL.conventions)
SOLUTION = form.solution_file(SMALL, PLAIN)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A key, and hand_in(ID, text) for a class of the small assignment; grading runs in this process."""
    monkeypatch.setattr(form, "load", lambda name: SMALL)
    key = tmp_path / "key.json"
    key.write_text(json.dumps({"secret": "s", "dialect": None}))

    def hand_in(who, text):
        (tmp_path / "class" / who).mkdir(parents=True)
        (tmp_path / "class" / who / "a4.py").write_bytes(text.encode() if isinstance(text, str) else text)

    return tmp_path, hand_in


@pytest.fixture
def trusted(monkeypatch):
    monkeypatch.setattr(jail, "open_jail", lambda kind, wall: contextlib.nullcontext(InProcess()))


def grade_class(folder, **options):
    return grade.grade("a4", [folder / "class"], folder / "key.json", folder / "out", quiet=True, **options)


def test_a_class(small, trusted):
    folder, hand_in = small
    hand_in("ada", SOLUTION)
    hand_in("bob", SOLUTION.replace("np.sum(x**2)", "np.mean(x**2)"))
    hand_in("cy", "syntax error")
    hand_in("=dee", "import nonsense_that_is_not_there")
    hand_in("eve", b"\0" * 2**21)
    results = grade_class(folder)
    assert {who: result["score"] for who, result in results.items()} == {
        "ada": 100, "bob": 50, "cy": 0, "_dee": 0, "eve": 0
    }  # fmt: skip
    text = (folder / "out" / "feedback" / "bob.md").read_text()
    assert "Your answers are as if a mean were wanted." in text and "50 of 100" in text
    assert "a4.py cannot be imported: SyntaxError in line 1." in (folder / "out" / "feedback" / "cy.md").read_text()
    assert "larger than 1 MB" in (folder / "out" / "feedback" / "eve.md").read_text()
    with open(folder / "out" / "class.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert rows["bob"]["a4.1"] == "50.0" and rows["bob"]["a4.2"] == "0.0" and rows["bob"]["jail"] == "none"
    assert "WITHOUT A JAIL" in results["ada"]["output"]
    assert os.stat(folder / "out").st_mode & 0o077 == 0
    with open(folder / "out" / "overlap.csv", newline="") as file:
        shared = {row["id"]: row for row in csv.DictReader(file)}
    assert shared["ada"]["nearest classmate"] in ("bob", "") and shared["cy"]["nearest classmate"] == ""


def test_what_is_no_submission_is_named(small, trusted, capsys):
    """A file ID_a4.py is one, as Canvas exports them; other files are named, and the results' own folder is none."""
    folder, hand_in = small
    hand_in("ada", SOLUTION)
    hand_in("kim", SOLUTION)
    (folder / "class" / "kim" / "a4.py").rename(folder / "class" / "kim" / "a4 (1).py")
    (folder / "class" / "uma_1_2_a4.py").write_text(SOLUTION)
    (folder / "class" / "tom.py").write_text(SOLUTION)
    for _ in range(2):
        results = grade.grade("a4", [folder / "class"], folder / "key.json", folder / "class" / "out", quiet=True)
        assert {who: result["score"] for who, result in results.items()} == {"ada": 100, "uma_1_2": 100, "kim": 0}
        assert "ignored tom.py (expected" in capsys.readouterr().err
    assert results["kim"]["extra_data"]["problem"] == "a4.py is missing; there is 'a4 (1).py'"
    text = (folder / "class" / "out" / "feedback" / "kim.md").read_text()
    assert "there is 'a4 (1).py'" in text and "##" not in text


def test_grades_of_another_key_or_assignment_are_not_written_over(small, trusted):
    folder, hand_in = small
    hand_in("ada", SOLUTION)
    grade_class(folder)
    (folder / "key.json").write_text(json.dumps({"secret": "t", "dialect": None}))
    with pytest.raises(UserError, match="holds grades of another key; choose another --out"):
        grade_class(folder)
    (folder / "key.json").write_text(json.dumps({"secret": "s", "dialect": None}))
    with pytest.raises(UserError, match="holds grades of another assignment"):
        grade.grade("a5", [folder / "class"], folder / "key.json", folder / "out", quiet=True)
    assert grade_class(folder)["ada"]["score"] == 100


@pytest.mark.parametrize(
    "change, sentence",
    [
        (("np.sum(x**2)", "1.01 * np.sum(x**2)"), "Some answers are wrong, by up to 0.01"),
        (("def values", "def valeus"), "a4.py lacks `values`, or something that it should have (AttributeError)."),
        (("return np.sum(x**2)", "return None"), "What `squares` returns is not of the kind or shape"),
    ],
)
def test_what_went_wrong_in_words(small, trusted, change, sentence):
    folder, hand_in = small
    assert SOLUTION.count(change[0]) == 1
    hand_in("ada", SOLUTION.replace(*change))
    output = "".join(test["output"] for test in grade_class(folder)["ada"]["tests"])
    assert sentence in output, output


def test_results_are_in_gradescopes_form(small, trusted):
    folder, hand_in = small
    hand_in("ada", SOLUTION)
    result = json.loads(json.dumps(grade_class(folder)["ada"]))
    assert result["score"] == 100 and result["stdout_visibility"] == "hidden"
    for test in result["tests"]:
        assert set(test) == {"number", "name", "score", "max_score", "output"}


def test_no_input_and_no_message_leaves_the_jail(small, trusted):
    """Neither a message, nor a name of an exception that the student makes up."""
    folder, hand_in = small
    hand_in("leak", "def values(x):\n    raise type(f'E{x[0]}', (ValueError,), {})(repr(x))\n\nsquares = values\n")
    results = grade_class(folder)
    (drawn,) = form.draw_cases(SMALL, SMALL.tasks[0], PLAIN, "s", None)[form.CORE]
    everything = "".join(path.read_text() for path in (folder / "out").rglob("*.*"))
    assert "It raised ValueError in line 2." in results["leak"]["tests"][0]["output"]
    assert "array(" not in everything and f"{drawn[0][0]:.4f}" not in everything


def test_what_is_finished_is_not_graded_again(small, trusted, monkeypatch):
    """Nor is it lost when the grader fails; another submission is graded anew."""
    folder, hand_in = small
    hand_in("ada", SOLUTION)
    hand_in("bob", SOLUTION + "# bob\n")
    honest, seen = grade.grade_source, []

    def fails_for_bob(assignment, dialect, secret, source, cage):
        seen.append(source)
        if b"bob" in source:
            raise RuntimeError("a mistake of ours")
        return honest(assignment, dialect, secret, source, cage)

    monkeypatch.setattr(grade, "grade_source", fails_for_bob)
    with pytest.raises(UserError, match="1 of 2 submissions could not be graded, bob first .RuntimeError: a mistake"):
        grade_class(folder)
    assert json.loads((folder / "out" / "results" / "ada.json").read_text())["score"] == 100
    assert not (folder / "out" / "results" / "bob.json").exists()
    monkeypatch.setattr(grade, "grade_source", lambda *given: seen.append(given[3]) or honest(*given))
    seen.clear()
    assert grade_class(folder)["ada"]["score"] == 100
    assert seen == [(SOLUTION + "# bob\n").encode()]
    seen.clear()
    (folder / "class" / "ada" / "a4.py").write_text(SOLUTION + "\n")
    grade_class(folder)
    assert len(seen) == 1


def test_half_right_gets_some_groups(small, trusted):
    folder, hand_in = small
    hand_in("ada", SOLUTION.replace("return np.sum(x)", "return np.sum(x) if len(x) else 1.0"))
    result = grade_class(folder)["ada"]
    assert result["score"] == 75 and "FAILED: empty" in result["tests"][0]["output"]


# --- the jail's bytes -----------------------------------------------------------------------------------------------

OUTPUTS = (form.Output("x", "float64", 2), form.Output("k", "int64", 0))


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"\7", b"\0" + b"\xff" * 16, b"\0" + (2**40).to_bytes(8, "little") * 2, b"\1" + b"\xff" * 8,
     b"\0" + (0).to_bytes(8, "little") + (2**62).to_bytes(8, "little") + b"\0" * 8, b"\1\0\0"],
)  # fmt: skip
def test_forged_bytes_are_no_answer(data):
    from tutorial.assignments.answers import read_answers

    answers = read_answers(data, 3, OUTPUTS)
    assert len(answers) == 3 and not any(isinstance(answer, list) and answer[0].size for answer in answers)


def test_inputs_come_back_as_they_were():
    import numpy as np

    value = ([1, 2.5, None, "é"], {"a": np.arange(6).reshape(2, 3), (1, 2): [np.float32(0.5)]}, float("-inf"), True)
    blobs = []
    coded = json.loads(json.dumps(inside.encode(value, blobs)))
    back = inside.decode(coded, inside.taker(b"".join(blobs)))
    assert isinstance(back, tuple) and back[0] == value[0] and back[2:] == value[2:] and back[1][(1, 2)] == [0.5]
    assert np.array_equal(back[1]["a"], value[1]["a"]) and back[1]["a"].flags.writeable


@pytest.mark.parametrize(
    "result", ["text", [[1.0, 2.0]], ([[1.0]], 1.5), ([[1.0], [2.0, 3.0]], 1), ([["a"]], 1), ([[1j]], 1), (None, 1)]
)
def test_other_types_are_no_answer(result):
    with pytest.raises((TypeError, ValueError)):
        inside.as_arrays(result, OUTPUTS)


# --- submissions ----------------------------------------------------------------------------------------------------


def make_zip(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "/").replace("_py", ".py"), data)
    return path


def test_submissions_that_can_be_read(tmp_path):
    (tmp_path / "c" / "ada").mkdir(parents=True)
    (tmp_path / "c" / "ada" / "a4.py").write_text("x")
    make_zip(tmp_path / "c" / "bob.zip", folder__a4_py="y", other_py="n")
    (tmp_path / "c" / "cy").mkdir()
    make_zip(tmp_path / "c" / "cy" / "upload.zip", a4_py="z")
    found = submission.collect([tmp_path / "c"], "a4.py")
    assert {who: submission.read(path, "a4.py") for who, path in found.items()} == {
        "ada": b"x",
        "bob": b"y",
        "cy": b"z",
    }
    assert list(submission.collect([tmp_path / "c" / "ada" / "a4.py"], "a4.py")) == ["ada"]
    with pytest.raises(UserError, match="submissions of ada"):
        make_zip(tmp_path / "c" / "ada.zip", a4_py="x")
        submission.collect([tmp_path / "c"], "a4.py")
    with pytest.raises(UserError, match="does not exist"):
        submission.collect([tmp_path / "nowhere"], "a4.py")


def test_zips_with_links_slips_and_bombs(tmp_path):
    make_zip(tmp_path / "bomb.zip", a4_py=b"\0" * 2**26)
    with pytest.raises(submission.Unusable, match="larger than 1 MB"):
        submission.read(tmp_path / "bomb.zip", "a4.py")
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        entry = zipfile.ZipInfo("a4.py")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(submission.Unusable, match="not a regular file"):
        submission.read(tmp_path / "link.zip", "a4.py")
    with zipfile.ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.writestr("../../a4.py", "slipped")
    assert submission.read(tmp_path / "slip.zip", "a4.py") == b"slipped"  # read, and written nowhere
    assert not (tmp_path.parent.parent / "a4.py").exists()
    make_zip(tmp_path / "two.zip", a__a4_py="1", b__a4_py="2")
    with pytest.raises(submission.Unusable, match="2 files called a4.py"):
        submission.read(tmp_path / "two.zip", "a4.py")
    (tmp_path / "torn.zip").write_bytes((tmp_path / "two.zip").read_bytes()[:40])
    with pytest.raises(submission.Unusable, match="cannot be read"):
        submission.read(tmp_path / "torn.zip", "a4.py")


def test_links_and_pipes_are_no_submissions(tmp_path):
    for name in ("link", "pipe", "folder"):
        (tmp_path / name).mkdir()
    os.symlink("/etc/passwd", tmp_path / "link" / "a4.py")
    os.mkfifo(tmp_path / "pipe" / "a4.py")
    (tmp_path / "folder" / "a4.py").mkdir()
    os.symlink(tmp_path / "pipe", tmp_path / "linked")
    for who, path in submission.collect([tmp_path], "a4.py").items():
        with pytest.raises(submission.Unusable):
            submission.read(path, "a4.py")
            pytest.fail(who)


# --- the command ----------------------------------------------------------------------------------------------------


def test_build_and_grade_from_the_command_line(tmp_path, capsys, trusted, monkeypatch):
    assert command.main(["build", "--to", str(tmp_path), "--dialect", "autumn", "--only", "a4"]) == 0
    release = {path.name for path in (tmp_path / "students" / "a4").iterdir()}
    assert release == {"a4.ipynb", "a4.py", "test_a4.py", "handout.md", "pytest.ini"}
    key = tmp_path / "teacher" / "key.json"
    assert os.stat(key).st_mode & 0o077 == 0
    secret = json.loads(key.read_text())["secret"]
    for path in (tmp_path / "students").rglob("*.*"):
        assert secret not in path.read_text()
    with zipfile.ZipFile(tmp_path / "teacher" / "gradescope" / "a4.zip") as archive:
        names = archive.namelist()
        assert {"setup.sh", "run_autograder", "key.json", "mini_pkd/command.py", "tutorial/assignments/a4.py"} <= set(
            names
        )
        assert "grade a4 /autograder" in archive.read("run_autograder").decode()
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / "a4.py").write_bytes((tmp_path / "teacher" / "a4" / "a4.py").read_bytes())
    grade_it = ["grade", "a4", str(tmp_path / "ada"), "--key", str(key), "--out", str(tmp_path / "out"), "--quiet"]
    capsys.readouterr()
    assert command.main(grade_it) == 0
    assert "   100  ada" in capsys.readouterr().out
    before = key.read_text()
    assert command.main(["build", "--to", str(tmp_path), "--only", "a4"]) == 0
    assert command.main(["build", "--to", str(tmp_path), "--dialect", "spring", "--only", "a4"]) == 1
    assert "was built with the dialect 'autumn'; give the same" in capsys.readouterr().err
    assert command.main(["build", "--to", str(tmp_path / "new"), "--dialect", ""]) == 1
    assert key.read_text() == before


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (["grade", "a9", "x", "--key", "k", "--out", "o"], 2, "invalid choice"),
        (["grade", "a4", "x", "--key", "nowhere.json", "--out", "o"], 1, "cannot be read"),
        (["grade", "a4", "x", "--key", "k", "--out", "o", "--jobs", "0"], 2, "jobs"),
        (["grade", "a4", "x", "--key", "k", "--out", "o", "--jail", "trust"], 2, "invalid choice"),
    ],
)
def test_errors_are_one_sentence(arguments, status, says, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == status
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and said.startswith("assignments: ")


def test_no_jail_is_a_refusal(monkeypatch):
    monkeypatch.setattr(jail.shutil, "which", lambda name: None)
    monkeypatch.setattr(jail.os, "geteuid", lambda: 1000)
    with pytest.raises(UserError, match="no jail works here: bwrap is not installed.*needs root"):
        with jail.open_jail("auto"):
            pass


def test_the_grader_needs_neither_numba_nor_soundfile():
    """Gradescope's container has numpy and tqdm only; and the package does not know of the classroom."""
    import subprocess
    import sys

    code = (
        "import sys\nfor name in ('numba', 'scipy', 'soundfile', 'mini_pkd.rnnt_loss'): sys.modules[name] = None\n"
        "from tutorial.assignments import __main__, task\n[task.load(name) for name in task.NAMES if task.exists(name)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    package = os.path.dirname(sys.modules["mini_pkd"].__file__)
    for name in os.listdir(package):
        if name.endswith(".py"):
            with open(os.path.join(package, name), encoding="utf-8") as file:
                assert "import tutorial" not in file.read().replace("from tutorial", "import tutorial"), name


@pytest.mark.parametrize("module", [dialects, overlap])
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0
