"""Imports flow one way between the packages, and the base install stays light."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("egret", "egret_hw", "egret_sim")
MAY_IMPORT = {
    "egret": {"egret"},
    "egret_hw": {"egret", "egret_hw"},
    "egret_sim": {"egret", "egret_hw", "egret_sim"},
}
HARDWARE_MAY_IMPORT = {
    "egret.command",
    "egret.errors",
    "egret.files",
    "egret.image_format",
    "egret.params",
}
"""What the RTL knows of `egret`: the parameters and the format, none of the packer."""
TORCH_ALLOWED = {
    "egret.compiler",
    "egret.integrations.session",
    "egret.pruning",
    "egret.qat",
    "egret.rate",
    "egret.shaping",
    "egret.training",
}
"""Modules of `egret` that may import torch when they are imported; recipes may too."""


def source_of(package: str) -> Path:
    file = importlib.import_module(package).__file__
    assert file is not None
    return Path(file).parent


def module_files() -> dict[str, Path]:
    """Return every module of the three packages by its dotted name."""
    files = {}
    for package in PACKAGES:
        root = source_of(package)
        for file in root.rglob("*.py"):
            parts = [package, *file.relative_to(root).with_suffix("").parts]
            files[".".join(parts).removesuffix(".__init__")] = file
    return files


FILES = module_files()


def imports(module: str, *, deferred: bool) -> Iterator[tuple[str, int]]:
    """Yield the dotted names that a module imports, with their lines.

    Without `deferred`, only the imports that run with the module itself: not those inside a
    function, nor those for the type checker alone.
    """

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not deferred and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in FILES else node.module), node.lineno


def test_modules_are_found() -> None:
    assert {"egret.params", "egret.cli", "egret_hw", "egret_sim"} <= set(FILES)
    assert "egret.errors" in {name for name, _ in imports("egret.files", deferred=False)}


@pytest.mark.parametrize("module", sorted(FILES))
def test_packages_import_one_way(module: str) -> None:
    allowed = MAY_IMPORT[module.partition(".")[0]]
    for name, line in imports(module, deferred=True):
        top = name.partition(".")[0]
        assert top not in PACKAGES or top in allowed, f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.startswith("egret_hw")))
def test_hardware_knows_only_parameters_and_format(module: str) -> None:
    for name, line in imports(module, deferred=True):
        if name == "egret" or name.startswith("egret."):
            assert name in HARDWARE_MAY_IMPORT, f"{module}:{line} imports {name}"


def test_no_import_cycles() -> None:
    graph = {
        module: {name for name, _ in imports(module, deferred=False) if name in FILES}
        for module in FILES
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join([*path, module])}"
        if module not in done:
            for name in sorted(graph[module] - {module}):
                visit(name, (*path, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("module", sorted(m for m in FILES if m.partition(".")[0] == "egret"))
def test_torch_only_where_networks_are_trained(module: str) -> None:
    if module in TORCH_ALLOWED or module.startswith("egret.recipes"):
        return
    for name, line in imports(module, deferred=False):
        assert name.partition(".")[0] not in {"torch", "sklearn"}, f"{module}:{line} imports {name}"


def test_base_install_loads_no_extra() -> None:
    """Importing the command line, the codec and the container pulls in none of the extras."""
    code = """
import sys
import egret, egret.cli, egret.container, egret.codec, egret.params, egret.image_format
from importlib.metadata import entry_points
for entry in entry_points(group="egret.commands"):
    entry.load()
# numba imports yaml where it is installed.
extras = {"torch", "sklearn", "amaranth", "cocotb", "cocotb_test", "matplotlib", "jinja2"}
print(*sorted(extras & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "", f"loaded: {result.stdout}"


def test_training_loads_no_sharded_tensors() -> None:
    """Their import takes longer than that of everything else in `egret.rate`."""
    code = """
import sys
import torch
before = "torch.distributed.tensor" in sys.modules
import egret.training
from egret import RateRegularizer
rate = RateRegularizer(torch.nn.Linear(3, 3), target_bits=1.0, steps=2)
rate.bits_per_weight()
print(before, "torch.distributed.tensor" in sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "False"]
