"""The files of mini_pkd import one way: no circle, not even through a function, a demo or a docstring's example."""

import ast
import graphlib
import re
from pathlib import Path

import mini_pkd

FOLDER = Path(mini_pkd.__file__).parent
NAMES = {path.stem for path in FOLDER.glob("*.py")} - {"__init__"}


def imported(path):
    """Names of the files that this one imports, anywhere in it."""
    text = path.read_text(encoding="utf-8")
    examples = "\n".join(re.findall(r"^ *>>> ((?:from|import) .*)", text, flags=re.MULTILINE))
    found = set()
    for node in [*ast.walk(ast.parse(text)), *ast.walk(ast.parse(examples))]:
        if isinstance(node, ast.ImportFrom):
            within = node.level or (node.module or "").split(".")[0] == "mini_pkd"
            words = (node.module or "").split(".") + [alias.name for alias in node.names]
            found |= set(words) & NAMES if within else set()
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mini_pkd.")}
    return found - {path.stem}  # an example may import its own file


def test_imports_go_one_way():
    imports = {path.stem: imported(path) for path in FOLDER.glob("*.py") if path.stem in NAMES}
    assert imports["lattice_kl"] >= {"rnnt_loss"} and imports["ops"] >= {"tensor"}  # it does see them
    graphlib.TopologicalSorter(imports).prepare()  # CycleError names the circle
