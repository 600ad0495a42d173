"""Install torch as a CPU build; `make venv` runs this inside the new environment.

On Linux the torch on PyPI depends on gigabytes of CUDA libraries, of which nothing here makes
use. PyTorch marks its CPU builds with the local version `+cpu` (on macOS there is one build, and it
needs no CUDA), so asking for that version cannot end in anything else.
"""

import re
import subprocess
import sys
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pinned(constraints: str) -> str:
    """Return torch's version from the text of a constraints file."""
    match = re.search(r"^torch==([0-9.]+)$", constraints, re.MULTILINE)
    if match is None:
        raise SystemExit("egret: constraints.txt pins no torch==VERSION")
    return match[1]


def attempts(version: str, index: str, platform: str) -> list[list[str]]:
    """Return the arguments for pip, in the order to try them.

    Parameters
    ----------
    version : str
        torch's version without a local part.
    index : str
        The user's TORCH_INDEX: empty, `default`, or a URL.
    platform : str
        `sys.platform` of the machine.
    """
    if index == "default":
        return [[f"torch=={version}"]]
    if index:
        return [[f"torch=={version}", "--index-url", index]]
    if platform == "darwin":
        return [[f"torch=={version}"]]
    cpu = f"torch=={version}+cpu"
    return [[cpu], [cpu, "--index-url", CPU_INDEX]]


def main(constraints: str, index: str) -> int:
    """Try each source in turn; the requirements of torch come with everything else later."""
    version = pinned(Path(constraints).read_text(encoding="utf-8"))
    failures = []
    for arguments in attempts(version, index, sys.platform):
        print(f"egret: pip install {' '.join(arguments)}", flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", *arguments]
        result = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
        if result.returncode == 0:
            return 0
        failures.append(result.stderr)
    print(*failures, sep="", end="", file=sys.stderr)
    print(
        f"egret: no build of torch {version} for this Python and system was found; name an index "
        "with TORCH_INDEX=URL, or TORCH_INDEX=default for the build that pip chooses",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
