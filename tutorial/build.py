"""Notebooks from their sources: tutorial/NN_name.py (jupytext's percent format) -> tutorial/NN_name.ipynb with outputs.

    python -m tutorial.build --execute            run all notebooks and write them, with what they print and draw
    python -m tutorial.build --execute 03 07      these two
    python -m tutorial.build --try 03             run it, and write nothing: what CI does with all of them
    python -m tutorial.build --check              is every notebook made from its source as it stands now?
    python -m tutorial.build --learner DIR        copies whose solutions are blanks
    python -m tutorial.build --models RUN         take the trained models from a finished run

In a source, a cell begins with `# %%`, a cell of text with `# %% [markdown]`.  A solution stands between two comments,
and the learner's copy has in its place what follows the colon, by default `...  # your turn`:

    # SOLUTION: frames = ...
    frames = 1 + -(-(samples - 400) // 160)
    # END SOLUTION

A cell with a solution is folded in the notebook.  In front of every notebook this file puts the link to Colab and the
cell that finds the package, so they stand in one place, here.
"""

import argparse
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mini_pkd import UserError
from mini_pkd.command import Parser, command

from . import models
from .exercise import UNANSWERED

FOLDER = Path(__file__).parent
LARGEST = 200_000  # bytes of a notebook with its outputs
LONGEST = 60  # seconds a notebook may take once the kernels are compiled: said, not enforced, because machines differ
PATIENCE = 600  # seconds for one cell: the first may compile
REPOSITORY = "mini-pkd/mini_pkd"  # on GitHub: what Colab opens and clones

BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/tutorial/{name}.ipynb)"
)
SETUP = """\
# Finds mini_pkd, or on Colab gets it. pip is told to leave numpy alone: this kernel may have loaded it already.
import os
import sys
from pathlib import Path

os.environ |= {{"NUMBA_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}  # models this small are fastest on one thread
try:
    import mini_pkd
except ImportError:
    import numpy

    !git clone --quiet --depth 1 https://github.com/{repository} mini_pkd_project
    !pip install --quiet --editable mini_pkd_project numpy=={{numpy.__version__}}
    sys.path.insert(0, "mini_pkd_project")
    import mini_pkd
sys.path.insert(0, str(Path(mini_pkd.__file__).parents[1]))  # the tutorial's own pictures and exercises"""

SOLUTION = re.compile(r"^( *)# SOLUTION(?:: (.*))?\n(?:.*\n)*?\1# END SOLUTION$", re.MULTILINE)
OWN_PATH = re.compile(r"(?<![\w.:/])(/(?:home|Users|root|tmp|work|usr|opt|var)/|[A-Z]:\\\\)[^\s'\"<>]*")


def sources(numbers=()):
    """The sources, all or those whose names begin with one of the numbers, in their order."""
    found = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    for number in numbers:
        if not any(path.name.startswith(number) for path in found):
            raise UserError(f"there is no notebook {number}; there are {', '.join(path.stem[:2] for path in found)}.")
    return [path for path in found if not numbers or path.name.startswith(tuple(numbers))]


def notebook(path, blank=False):
    """A source -> a notebook without outputs; blank: without solutions."""
    import jupytext
    from nbformat import v4

    text = path.read_text(encoding="utf-8")
    if len(re.findall("# SOLUTION", text)) != len(SOLUTION.findall(text)) or "# END" in SOLUTION.sub("", text):
        raise UserError(f"{path.name} has a `# SOLUTION` without its `# END SOLUTION`, or the reverse; pair them.")
    if blank:
        text = SOLUTION.sub(lambda found: found[1] + (found[2] or "...") + "  # your turn", text)
    cells = [v4.new_markdown_cell(BADGE.format(repository=REPOSITORY, name=path.stem))]
    cells += [v4.new_code_cell(SETUP.format(repository=REPOSITORY))]
    cells += jupytext.reads(text, fmt="py:percent").cells
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i:02d}"  # the same at every build
        cell.metadata = {"jupyter": {"source_hidden": True}} if i == 1 or "# SOLUTION" in cell.source else {}
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": python, "language_info": {"name": "python"}})


def target(path):
    return path.with_suffix(".ipynb")


# --- with outputs ---------------------------------------------------------------------------------


def execute(path):
    """-> (the notebook with its outputs, seconds)."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    made = notebook(path)
    client = NotebookClient(
        made, timeout=PATIENCE, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )  # fmt: skip
    start = time.monotonic()
    try:
        client.execute()
    except CellExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        raise UserError(f"{path.name} does not run; mend this cell:\n{plain}") from None
    seconds = time.monotonic() - start
    for cell in made.cells:
        for output in cell.get("outputs", ()):
            if UNANSWERED in str(output):
                raise UserError(f"{path.name} has an exercise whose answer is `...` with its solution in place.")
            if output.output_type == "execute_result":
                output.execution_count = None
        if cell.cell_type == "code":
            cell.execution_count = None  # a line less in every diff
    made.metadata = notebook(path).metadata
    return made, seconds


def as_text(made, name):
    """The notebook as it stands on disk; refuses one that is too large or names a folder of this machine."""
    import nbformat

    nbformat.validate(made)
    text = nbformat.writes(made).replace(str(FOLDER.parent), ".").rstrip() + "\n"
    outputs = re.sub(r'"image/(png|svg\+xml)": .*', "", text)
    if found := OWN_PATH.search(outputs):
        raise UserError(f"{name} prints {found[0]}, a path of this machine; print a name instead.")
    if len(text.encode()) > LARGEST:
        raise UserError(f"{name} has {len(text.encode()) / 1e3:.0f} kB and may have {LARGEST / 1e3:.0f}; draw less.")
    return text


def run(paths, write):
    """Execute them, two at a time; all run to their end before the first mistake is reported."""

    def one(path):
        try:
            made, seconds = execute(path)
            text = as_text(made, target(path).name)
            if write:
                target(path).write_text(text, encoding="utf-8")
            late = f"  (more than {LONGEST} s)" if seconds > LONGEST else ""
            print(f"{path.stem:24s} {seconds:6.1f} s {len(text.encode()) / 1e3:6.0f} kB{late}", flush=True)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        wrong = [error for error in pool.map(one, paths) if error]
    if wrong:
        raise UserError("\n".join(wrong))


# --- is it fresh, and copies for learners ---------------------------------------------------------


def stale(path):
    """What is wrong with the notebook of a source, or None.  Sources are compared, outputs are not."""
    import nbformat

    again = f"run `python -m tutorial.build --execute {path.stem[:2]}`"
    if not target(path).exists():
        return f"{target(path).name} is not there; {again}."
    text = target(path).read_text(encoding="utf-8")
    there, wanted = nbformat.reads(text, as_version=4), notebook(path)
    if [(c.cell_type, c.source, c.metadata) for c in there.cells] != [
        (c.cell_type, c.source, c.metadata) for c in wanted.cells
    ]:
        return f"{target(path).name} is not what {path.name} makes now; {again}."
    try:
        as_text(there, target(path).name)
    except UserError as error:
        return str(error)


def check():
    wrong = [found for path in sources() if (found := stale(path))]
    left = {path.stem for path in FOLDER.glob("*.ipynb")} - {path.stem for path in sources()}
    wrong += [f"{name}.ipynb has no source; remove it." for name in sorted(left)]
    if wrong:
        raise UserError("\n".join(wrong))
    print(f"{len(sources())} notebooks, all made from their sources as they stand.")


def write_learner_copies(folder):
    import nbformat

    folder = Path(folder)
    if folder.resolve() == FOLDER.resolve():
        raise UserError("the learner's copies would replace the notebooks with solutions; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sources():
        copy = folder / target(path).name
        if copy.exists():
            raise UserError(f"{copy} exists, and may hold somebody's answers; name a new folder.")
        copy.write_text(nbformat.writes(notebook(path, blank=True)) + "\n", encoding="utf-8")
    print(f"{len(sources())} notebooks with blanks in {folder}: jupyter lab {folder}")


# --- the command ----------------------------------------------------------------------------------


@command("tutorial.build")
def main(arguments=None):
    parser = Parser(
        "tutorial.build",
        description="Make the notebooks of the tutorial from their sources.",
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.prog = "python -m tutorial.build"
    numbers = {"nargs": "*", "metavar": "NN"}
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--execute", **numbers, help="run notebooks (all, or these) and write them with their outputs")
    task.add_argument("--try", **numbers, dest="try_out", help="run notebooks and write nothing")
    task.add_argument("--check", action="store_true", help="fail if a notebook is not what its source makes")
    task.add_argument("--learner", metavar="DIR", help="write copies to work with: exercises are blank")
    task.add_argument("--models", metavar="RUN", help="copy what the notebooks need of a run, such as runs/tiny")
    options = parser.parse_args(arguments)
    if options.models:
        print("tutorial/models/:", *models.copy_from(options.models))
        return
    try:
        import jupytext  # noqa: F401
        import nbclient  # noqa: F401
    except ImportError:
        raise UserError('jupytext or nbclient is not installed; pip install -e ".[tutorial]".') from None
    if options.check:
        check()
    elif options.learner:
        write_learner_copies(options.learner)
    else:
        writes = options.execute is not None
        run(sources(options.execute if writes else options.try_out), writes)


if __name__ == "__main__":
    sys.exit(main())
