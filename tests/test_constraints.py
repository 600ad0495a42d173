"""constraints.txt pins what pyproject.toml asks for."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
PINS = {canonicalize_name(name): version for name, _, version in (x.partition("==") for x in LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(item for extra in PROJECT["optional-dependencies"].values() for item in extra),
]


@pytest.mark.parametrize("line", LINES)
def test_pins_are_exact(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line)


def test_nothing_is_pinned_twice_or_for_cuda() -> None:
    assert len(PINS) == len(LINES)
    assert not [name for name in PINS if re.match(r"nvidia|triton|cuda", name)]


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_requirement_is_pinned_within_its_range(text: str) -> None:
    requirement = Requirement(text)
    name = canonicalize_name(requirement.name)
    assert name in PINS
    assert requirement.specifier.contains(PINS[name], prereleases=True)
