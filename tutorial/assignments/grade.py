"""From submissions to grades: jail first, then the reference, then the mutants.

Student code never meets an expected value.  All tasks of a submission run in the jail before the reference computes
its first answer for it, so that nothing which the student's code does there can find one, change one or guess one.

An answer that differs from the reference's is compared with the mutants': who has made a known mistake is told which.
"""

import csv
import hashlib
import json
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from mini_pkd import UserError
from mini_pkd.command import printable, progress_bar

from . import answers as answers_module
from . import inside, jail, overlap, submission
from . import task as form
from .answers import Raised, read_answers
from .dialect import draw

PATIENCE = 2  # time-outs of a submission; its other tasks are not tried after them


class Grade(NamedTuple):
    """What a task has earned, and what its student is told."""

    points: float
    groups: dict  # {name: passed}; empty if the cases that belong to every group failed
    notes: list  # sentences


# --- one submission -------------------------------------------------------------------------------------------------


def grade_source(assignment, dialect, secret, source, cage):
    """A Grade for each task of one submission (bytes), run in an open jail."""
    reference = form.module(form.solution_file(assignment, dialect), "reference")
    cases = [form.draw_cases(assignment, task, dialect, secret, reference) for task in assignment.tasks]
    ended, late = [], 0
    with cage.cell(assignment.file, source) as cell:
        for task, groups in zip(assignment.tasks, cases, strict=True):
            if late >= PATIENCE:
                ended.append(jail.Ended("skipped", b""))
                continue
            inputs = [case for group in groups.values() for case in group]
            job = jail.job_of(assignment.file, form.drive_code(task), task.outputs, inputs, task.memory)
            ended.append(cage.run(cell, *job))
            late += ended[-1].how == "time"
    return [
        mark(assignment, task, dialect, groups, how, reference)
        for task, groups, how in zip(assignment.tasks, cases, ended, strict=True)
    ]


def mark(assignment, task, dialect, groups, ended, reference):
    """The Grade of one task from what came out of the jail, which has been torn down."""
    inputs = [case for group in groups.values() for case in group]
    answers = read_answers(ended.data, len(inputs), task.outputs)
    expected = [form.answer(task, reference, case) for case in inputs]
    for value in expected:
        if isinstance(value, Exception):
            raise value  # our mistake, not the student's
    right = [
        isinstance(found, list) and form.error(found, value) <= task.tolerance
        for found, value in zip(answers, expected, strict=True)
    ]
    passed, position = {}, 0
    for group, members in groups.items():
        passed[group] = all(right[position : position + len(members)])
        position += len(members)
    core = passed.pop(form.CORE)
    if core and all(passed.values()):
        return Grade(float(task.points), passed, [])
    notes = _notes(assignment, task, dialect, inputs, answers, expected, right, ended)
    if core:
        return Grade(task.points * sum(passed.values()) / len(passed), passed, notes)
    if any(isinstance(answer, list) for answer in answers):
        notes.append("Ordinary cases are among the wrong ones, and they belong to every group: mend these first.")
    return Grade(0.0, {}, notes)  # which special cases fail as well would only mislead


def _notes(assignment, task, dialect, inputs, answers, expected, right, ended):
    """Sentences on what went wrong, the most telling first, none of them about an input."""
    if ended.how == "skipped":
        return [f"Not run, because {PATIENCE} tasks before it took too long."]
    raised = [answer for answer in answers if isinstance(answer, Raised)]
    if raised and raised[0].importing:
        hint = " (only numpy and the standard library are there)" if raised[0].kind == "ModuleNotFoundError" else ""
        return [f"{assignment.file} cannot be imported: {raised[0]}{hint}."]
    if raised and all(answer.kind == "NotImplementedError" for answer in raised) and len(raised) == len(answers):
        return ["Not solved yet: it raises NotImplementedError."]
    notes = []
    if ended.how == "time":
        notes.append(f"It took too long and was stopped ({jail.LIMITS['cpu']} s of processor time; an endless loop?).")
    if ended.how == "output":
        notes.append("It sent far more than an answer, and was stopped.")
    if ended.how == "itself" and None in answers:
        notes.append("The process ended, or sent something that is no answer, before all cases were answered.")
    ends = {"time"} if ended.how == "time" else set()
    ends |= {"memory"} if any(answer.kind == "MemoryError" for answer in raised) else set()
    for text in dict.fromkeys(_raised(assignment, task, answer) for answer in raised):
        notes.append(text)
    notes += [f"It ends {dialect.render(mutant.sentence)}." for mutant in task.mutants if mutant.ends in ends]
    wrong = [
        (case, found, value)
        for case, found, value, good in zip(inputs, answers, expected, right, strict=True)
        if isinstance(found, list) and not good
    ]
    if not wrong:
        return notes[:4]
    notes += _mistakes(assignment, task, dialect, inputs, answers, expected, wrong)
    for k, output in enumerate(task.outputs):
        if any(found[k].shape != value[k].shape for _, found, value in wrong):
            notes.append(f"{dialect.render(output.name)} has another shape than expected: another size, or other axes.")
    return notes[:4] or [_how_wrong(task, wrong)]


def _raised(assignment, task, answer):
    """What a Raised tells; without a line it was not the student's code that raised it, but what used its answer."""
    if answer.line:
        return f"It raised {answer}."
    if answer.kind == "AttributeError":
        return f"{assignment.file} lacks `{task.function}`, or something that it should have (AttributeError)."
    if answer.kind in ("TypeError", "ValueError"):
        return f"What `{task.function}` returns is not of the kind or shape that its docstring says ({answer.kind})."
    return f"It raised {answer}."


def _how_wrong(task, wrong):
    """A sentence for answers that are wrong and have the right shapes."""
    if any(output.dtype.startswith("int") for output in task.outputs):
        return "Some answers are wrong; their shapes are right."
    worst = max(form.error(found, value) for _, found, value in wrong)
    size = f", by up to {worst:.1g} (of the value, or of 1 where it is smaller)" if worst < 1e300 else ""
    return f"Some answers are wrong{size}; their shapes are right."


def _mistakes(assignment, task, dialect, inputs, answers, expected, wrong):
    """The sentence of the mutant that answers as the student does: in every case, or else in most of the wrong ones."""
    partly = []
    for mutant in task.mutants:
        if mutant.ends:
            continue
        module = form.module(form.solution_file(assignment, dialect, task, mutant), "mutant")

        def alike(case, found, module=module):
            answer = form.answer(task, module, case)
            return not isinstance(answer, Exception) and form.error(found, answer) <= task.tolerance

        agreeing = sum(alike(case, found) for case, found, _ in wrong)
        if agreeing == len(wrong) and all(
            alike(case, found) for case, found in zip(inputs, answers, strict=True) if isinstance(found, list)
        ):
            return [f"Your answers are {dialect.render(mutant.sentence)}."]
        if 2 * agreeing > len(wrong):
            partly.append(f"Some of your answers are {dialect.render(mutant.sentence)}.")
    return partly[:1]


# --- what is written ------------------------------------------------------------------------------------------------


def gradescope(assignment, grades, kind, fingerprint, problem=None):
    """The results of one submission in Gradescope's form; `problem` is a sentence if it could not be read."""
    tests = []
    for k, (task, grade) in enumerate(zip(assignment.tasks, grades, strict=True), 1):
        lines = [*grade.notes, *(f"{'passed' if good else 'FAILED'}: {group}" for group, good in grade.groups.items())]
        tests.append(
            {
                "number": f"{k}",
                "name": f"{assignment.name}.{k} {task.name}",
                "score": round(grade.points, 2),
                "max_score": task.points,
                "output": "\n".join(lines),
            }
        )
    notes = [f"The submission could not be graded: {problem}."] if problem else []
    if kind == "none":
        notes.append("GRADED WITHOUT A JAIL: do not trust this grade unless you wrote the submission.")
    return {
        "score": round(sum(test["score"] for test in tests), 2),
        "output": "\n".join(notes),
        "tests": tests,
        "stdout_visibility": "hidden",
        "extra_data": {"jail": kind, "fingerprint": fingerprint, "problem": problem},
    }


def feedback(name, assignment, results):
    """feedback/ID.md: the same for people."""
    lines = [f"# {assignment.name}, {name}: {results['score']:g} of 100 points\n"]
    if results["output"]:
        lines.append(results["output"] + "\n")
    if results["extra_data"]["problem"]:
        return "\n".join(lines)
    for test in results["tests"]:
        lines.append(f"## {test['name']}: {test['score']:g} of {test['max_score']}\n")
        lines += [f"- {line}" for line in test["output"].splitlines()]
        lines.append("")
    lines.append(
        "A group of cases pays all of its points or none. Every task was called by itself, with correct inputs."
    )
    return "\n".join(lines) + "\n"


def write_whole(path, text):
    """Write a file that is either there whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def write_table(path, assignment, results):
    """class.csv: a row for each submission."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
        table = csv.writer(file)
        numbers = [f"{assignment.name}.{k}" for k in range(1, len(assignment.tasks) + 1)]
        table.writerow(["id", "score", *numbers, "jail", "problem"])
        for name, result in sorted(results.items()):
            scores = [test["score"] for test in result["tests"]]
            extra = result["extra_data"]
            table.writerow([name, result["score"], *scores, extra["jail"], extra["problem"] or ""])
    os.replace(file.name, path)


# --- a class --------------------------------------------------------------------------------------------------------


def read_key(path):
    """{"secret", "dialect"} of a key file; UserError for another file."""
    try:
        key = json.loads(Path(path).read_text("utf-8"))
        if isinstance(key["secret"], str) and key["secret"] and isinstance(key["dialect"], (str, type(None))):
            return key
    except OSError as error:
        raise UserError(f"The key {path} cannot be read ({error.strerror}); `build` writes teacher/key.json.") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not a key; give the teacher/key.json that `build` has written.")


def grade(name, paths, key_path, out, kind="auto", jobs=1, quiet=False, wall=jail.WALL):
    """Grade all submissions below `paths`; returns {ID: results}.  What is finished already is not graded again.

    Every result is written at once, so a crash or Ctrl-C loses none.  UserError names the submissions that could not
    be graded because of a mistake of the grader's, after all others have been.
    """
    assignment, key, out = form.load(name), read_key(key_path), Path(out)
    dialect = draw(assignment, key["dialect"])
    found = submission.collect(paths, assignment.file, out)
    out.mkdir(parents=True, exist_ok=True)
    os.chmod(out, 0o700)
    _same_grades(out, name, key)
    texts = [Path(module.__file__).read_bytes() for module in (form, inside, jail, answers_module)]
    texts.append(Path(__file__).read_bytes())
    texts.append(form.solution_file(assignment, dialect).encode())
    version = hashlib.sha256(b"\0".join([*texts, repr([str(task.mutants) for task in assignment.tasks]).encode()]))
    results, sources, failed, lock = {}, {}, {}, threading.Lock()

    def one(cage, who, path):
        problem, source = None, b""
        try:
            source = submission.read(path, assignment.file)
        except submission.Unusable as error:
            problem = printable(str(error))
        mark_of = version.copy()
        mark_of.update(repr([key, cage.kind, who, problem]).encode() + source)
        fingerprint = mark_of.hexdigest()
        place = out / "results" / f"{who}.json"
        try:
            result = json.loads(place.read_text("utf-8"))
            done = result["extra_data"]["fingerprint"] == fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            done = False
        if not done:
            if problem:
                grades = [Grade(0.0, {}, []) for _ in assignment.tasks]
            else:
                grades = grade_source(assignment, dialect, key["secret"], source, cage)
            result = gradescope(assignment, grades, cage.kind, fingerprint, problem)
            write_whole(out / "feedback" / f"{who}.md", feedback(who, assignment, result))
            write_whole(place, json.dumps(result, indent=1) + "\n")  # last: it says that all is written
        with lock:
            results[who], sources[who] = result, source

    with jail.open_jail(kind, wall) as cage:
        if cage.kind == "uid":
            _refuse_open_doors([key_path, *found.values()], assignment.file)
        pool = ThreadPoolExecutor(max_workers=jobs)
        try:
            waiting = {pool.submit(one, cage, who, path): who for who, path in found.items()}
            with progress_bar(None if quiet else name, total=len(found), unit="submission") as bar:
                for future in as_completed(waiting):
                    bar.update()
                    if future.exception():
                        failed[waiting[future]] = future.exception()
        finally:
            pool.shutdown(cancel_futures=True)
    write_table(out / "class.csv", assignment, results)
    overlap.write(out / "overlap.csv", assignment, dialect, sources)
    if failed:
        who, error = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(found)} submissions could not be graded, {who} first "
            f"({type(error).__name__}: {printable(str(error))}); the others are in {out}. Run the same command again."
        )
    return results


def _same_grades(out, name, key):
    """A folder holds the grades of one assignment, made with one key; UserError for another."""
    path, about = out / "graded.json", {"assignment": name, "key": hashlib.sha256(repr(key).encode()).hexdigest()}
    try:
        before = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        before = about
    if before != about:
        other = "another key" if before.get("assignment") == name else "another assignment"
        raise UserError(f"{out} holds grades of {other}; choose another --out.")
    write_whole(path, json.dumps(about) + "\n")


def _refuse_open_doors(paths, file):
    """In the jail `uid` a submission reads what every user may: not the key, and no other submission."""
    for path in paths:
        inner = Path(path) / file
        for place in (path, inner) if inner.exists() else (path,):
            if not Path(place).is_symlink() and Path(place).is_file() and jail.readable_by_others(place):
                raise UserError(
                    f"{place} can be read by every user of this machine, and so by the submissions (jail uid); "
                    f"take this right away (chmod go= on its folder) and grade again."
                )
