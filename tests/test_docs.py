"""The documentation names files and tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIDELITY = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
CODE = re.findall(r"`([^`\s]+)`", FIDELITY)
TESTS = sorted({code for code in CODE if re.match(r"(\w+/)*test_\w+\.py", code)})
PATHS = sorted({code for code in CODE if re.match(r"(aef|kernels|launcher|docs|benchmarks|tests)/[\w/.]+$", code)})


@pytest.mark.parametrize("reference", TESTS)
def test_a_test_that_holds_a_fact_exists(reference):
    file, _, name = reference.partition("::")
    path = ROOT / "tests" / file
    assert path.is_file(), f"{file} does not exist"
    if name:
        functions = {
            n.name for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)
        }
        assert name in functions


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_is_named_exists(path):
    assert (ROOT / path).exists()


def test_every_row_says_where_it_is_implemented_and_what_holds_it():
    rows = [
        line for line in FIDELITY.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| Fact"))
    ]
    assert len(rows) > 40
    for row in rows:
        cells = re.split(r"(?<!\\)\|", row)[1:-1]
        assert len(cells) == 4, row
        assert "`" in cells[1] and "test_" in cells[2], row


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_launcher_and_benchmarks_hide_no_module_of_the_standard_library():
    import sys

    for folder in ("launcher", "benchmarks"):
        names = {path.stem for path in (ROOT / folder).glob("*.py")}
        assert not names & set(sys.stdlib_module_names)
