"""docs/testplan.md names tests that there are, and every test file of the hardware."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PLAN = TESTS.parent / "docs/testplan.md"
STATUSES = {"suite", "proof", "open"}


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables' rows, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0] != "feature" and not set(row[0]) <= {"-"}]


def problems(text: str, known: dict[str, set[str]]) -> list[str]:
    """Return what is wrong with a plan, given the tests of each file."""
    found = []
    named: set[str] = set()
    for row in rows(text):
        if len(row) != 4 or row[3] not in STATUSES:
            found.append(f"{row[0]}: found {row[3:]}, expected a status of {sorted(STATUSES)}")
            continue
        tests = re.findall(r"`(\w+)::(\w+)`", row[2])
        if bool(tests) == (row[3] == "open"):
            found.append(f"{row[0]}: {row[3]}: found {len(tests)} tests")
        for file, name in tests:
            named.add(file)
            if name not in known.get(file, set()):
                found.append(f"{row[0]}: tests/{file}.py has no {name}")
    missing = sorted(set(known) - named)
    return found + [f"tests/{file}.py: no row of the plan names a test of it" for file in missing]


def hardware_tests() -> dict[str, set[str]]:
    """Return the names of the tests of each file that simulates, proves or models the hardware."""
    known = {}
    for path in TESTS.glob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        }
        modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        if any(module.split(".")[0] == "egret_sim" for module in modules):
            known[path.stem] = names
    return known


def named_elsewhere() -> dict[str, set[str]]:
    """Return the tests of all files."""
    return {
        path.stem: set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
        for path in TESTS.glob("test_*.py")
    }


def test_the_plan_and_the_tests_agree() -> None:
    hardware = hardware_tests()
    assert "test_hw_accelerator" in hardware
    text = PLAN.read_text(encoding="utf-8")
    others = named_elsewhere()
    # Files that are no hardware's may be named, and need not.
    also = {file for file, _ in re.findall(r"`(\w+)::(\w+)`", text)} & set(others)
    assert problems(text, {**{file: others[file] for file in also}, **hardware}) == []


ROW = "| a | b | `test_x::test_y` | suite |\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ROW, []),
        (ROW.replace("test_y", "test_z"), ["a: tests/test_x.py has no test_z"]),
        (ROW.replace("suite", "open"), ["a: open: found 1 tests"]),
        (
            ROW + "| c | d | later | suite |\n",
            ["c: suite: found 0 tests"],
        ),
        (
            ROW + "| c | d | later | soon |\n",
            ["c: found ['soon'], expected a status of ['open', 'proof', 'suite']"],
        ),
        ("", ["tests/test_x.py: no row of the plan names a test of it"]),
    ],
)
def test_what_is_wrong_is_found(text: str, found: list[str]) -> None:
    head = "| feature | risk | test | status |\n|---|---|---|---|\n"
    assert problems(head + text, {"test_x": {"test_y"}}) == found
