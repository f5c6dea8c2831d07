"""The house: which file belongs to which chapter, which way imports go, how long a lesson may be."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import mini_pkd

PACKAGE = Path(mini_pkd.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
ENGINE_ROOM = "The engine room"


def chapters():
    """{chapter: ([files in order], lines)} from the README's map: "**Chapter** ... (N lines)", then rows of files."""
    found, current = {}, None
    for line in README.splitlines():
        heading = re.match(r"\*\*(?:\d\. )?(.+?)\*\*.* \(([\d,]+) lines\)", line)
        if heading:
            current = heading[1]
            found[current] = ([], int(heading[2].replace(",", "")))
        if current and line.startswith("| `"):
            found[current][0].extend(re.findall(r"`(\w+)\.py`", line.split("|")[1]))
    return found


MAP = chapters()
LESSON = [name for chapter, (names, _) in MAP.items() if chapter != ENGINE_ROOM for name in names]


def lines(name):
    return len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines())


def imports(name):
    """Modules of the package that a file imports, anywhere but in its demo."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "demo":
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom):
                assert inner.level == 1 or not (inner.module or "").startswith("mini_pkd"), f"{name}.py: not relative"
                if inner.level == 1:
                    found |= {inner.module} if inner.module else {alias.name for alias in inner.names}
    return {module for module in found if (PACKAGE / f"{module}.py").exists()}


def test_the_map_names_every_file_once():
    named = [name for names, _ in MAP.values() for name in names]
    assert len(MAP) == 6 and ENGINE_ROOM in MAP
    assert sorted(named) == sorted(p.stem for p in PACKAGE.glob("*.py") if not p.stem.startswith("__"))


@pytest.mark.parametrize("chapter", MAP)
def test_line_counts_of_the_map(chapter):
    names, said = MAP[chapter]
    assert said == sum(map(lines, names)), f"README says {said}"


def test_a_lesson_reads_in_one_sitting():
    assert {name: lines(name) for name in LESSON if lines(name) > 400} == {}
    assert {name: lines(name) for name in MAP[ENGINE_ROOM][0] if lines(name) > 450} == {}
    assert sum(map(lines, LESSON)) < 4500


def test_lessons_import_only_what_comes_before_them():
    for i, name in enumerate(LESSON):
        later = imports(name) & set(LESSON[i:])
        assert not later, f"{name}.py imports {later}, which come later on the map"


def test_no_circle_of_imports():
    graph = {name: imports(name) for names, _ in MAP.values() for name in names}
    while graph:
        free = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in free}


def test_every_kernel_has_a_readable_partner_that_a_test_names():
    """`readable` is a function, or words: "module.function ..." if later on the map, or why there is none."""
    texts = "\n".join(p.read_text(encoding="utf-8") for p in (PACKAGE.parent / "tests").glob("test_*.py"))
    kernels = 0
    for name in [name for names, _ in MAP.values() for name in names]:
        module = importlib.import_module(f"mini_pkd.{name}")
        for value in vars(module).values():
            if not hasattr(value, "compiled") or value.__module__ != module.__name__:
                continue
            kernels += 1
            partner = value.readable
            assert partner, f"{name}.{value.__name__} has no readable partner and no reason"
            named = re.match(r"(\w+)\.(\w+)", partner) if isinstance(partner, str) else None
            if named:
                partner = getattr(importlib.import_module(f"mini_pkd.{named[1]}"), named[2])
            if not isinstance(partner, str):
                assert re.search(rf"\b{partner.__name__}\b", texts), f"no test names {partner.__name__}"
    assert kernels > 20


def test_every_file_has_its_tests():
    """A lesson file has a test file of its own; what was split off for the engine room is at least named by one."""
    folder = PACKAGE.parent / "tests"
    assert [name for name in LESSON if not (folder / f"test_{name}.py").exists()] == []
    texts = "\n".join(p.read_text(encoding="utf-8") for p in folder.glob("*.py") if p.name != "test_demos.py")
    for name in MAP[ENGINE_ROOM][0]:
        has_its_own = (folder / f"test_{name}.py").exists()
        assert has_its_own or re.search(rf"\b{name}\b", texts), f"no test names {name}.py"
