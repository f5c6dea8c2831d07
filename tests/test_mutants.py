"""The list of mutants.py goes with the code: every mutant still fits, and is still Python."""

import ast
from pathlib import Path

import pytest
from mutants import MUTANTS, ROOT, fault


@pytest.mark.parametrize("mutant", MUTANTS, ids=[m.name for m in MUTANTS])
def test_a_mutant_fits_the_code(mutant):
    assert fault(mutant) is None
    text = (ROOT / "mini_pkd" / mutant.file).read_text(encoding="utf-8")
    changed = text.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))


def test_names_tell_mutants_apart():
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_a_list_that_has_gone_stale_is_told(tmp_path):
    mutant = MUTANTS[0]
    (tmp_path / "mini_pkd").mkdir()
    (tmp_path / "tests").mkdir()
    code = tmp_path / "mini_pkd" / mutant.file
    assert "0 times, not once" in fault(mutant, tmp_path)
    code.write_text(2 * mutant.old)
    assert "2 times, not once" in fault(mutant, tmp_path)
    code.write_text(mutant.old)
    assert f"there is no tests/{mutant.tests}" in fault(mutant, tmp_path)
    for tests in (mutant.tests, f"{mutant.tests}::test_that_is_there"):
        Path(tmp_path / "tests" / mutant.tests).write_text("def test_that_is_there():\n    pass\n")
        assert fault(mutant._replace(tests=tests), tmp_path) is None
    assert "::test_that_is_gone" in fault(mutant._replace(tests=f"{mutant.tests}::test_that_is_gone"), tmp_path)
