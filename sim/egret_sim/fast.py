"""Runs the accelerator's top in a compiled harness, without Python on the clock edge.

Words from a file go in as fast as they are taken (or with random pauses), results go to a
file, and registers are read over AXI4-Lite between the phases of a job: millions of cycles in the
time that a bench in Python takes for some ten thousand.
"""

import fcntl
import hashlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from egret.errors import EgretError
from egret.files import write_text
from egret.params import AcceleratorParams
from egret_hw.rtl import LINT_WAIVERS, generate_verilog, top_name
from egret_sim.runner import VERILATOR_FLAGS, build_folder, count_cycles, verilator_environment

__all__ = ["FastModel", "FastPacket", "Phase", "PhaseRecord", "build_program"]

_MAIN = Path(__file__).parent / "fast_main.cpp"
_WORD_BYTES = 4
_RESULT_WORDS = 3
_LAST, _ERROR = 1, 2
_SETTLE = 16
_TIMEOUT = 100_000


@dataclass(frozen=True)
class Phase:
    """What is sent until everything expected has come.

    Parameters
    ----------
    weights : sequence of bytes
        Packets for the weight stream, whole bus words each.
    activations : sequence of bytes
        Packets for the activation stream: whole beats, see `AcceleratorParams.pad_activations`.
    results : int
        Packets that the output stream sends.
    matrices : int
        Matrices that end.
    settle : int
        Cycles to go on for when all that has happened.
    limit : int
        Cycles after which the phase ends, whatever has come or not, with a reset of the core; what
        was not taken by then is dropped. 0: it ends when all has come.
    may_fail : bool
        A packet that reports an error counts as one of `results`, and the phase goes on.
    writes : mapping of int to int
        Registers to write before, by byte address.
    reads : sequence of int
        Registers to read behind.
    """

    weights: Sequence[bytes] = ()
    activations: Sequence[bytes] = ()
    results: int = 0
    matrices: int = 0
    settle: int = _SETTLE
    limit: int = 0
    may_fail: bool = False
    writes: Mapping[int, int] = field(default_factory=dict)
    reads: Sequence[int] = ()


@dataclass(frozen=True)
class FastPacket:
    """A packet of the output stream.

    Parameters
    ----------
    values : ndarray of int32, shape (beats,)
        Its data.
    cycles : ndarray of uint32, shape (beats,)
        The cycle of each beat, counted from the phase's first.
    is_error : bool
        It reports an error.
    """

    values: npt.NDArray[np.int32]
    cycles: npt.NDArray[np.uint32]
    is_error: bool


@dataclass(frozen=True)
class PhaseRecord:
    """What a phase did. Cycles are counted from the phase's first.

    Parameters
    ----------
    is_complete : bool
        All that was expected has come, or the limit; not so after an error, unless the phase may
        fail, or when nothing moved for too long.
    cycles : int
        Length of the phase.
    entered : ndarray of uint32
        Cycle of the last word of each packet of the weight stream.
    done : ndarray of uint32
        Cycle in which each matrix ended.
    packets : list of FastPacket
        What the output stream sent, also a last packet that is not whole.
    registers : dict of int to int
        Registers that were read.
    """

    is_complete: bool
    cycles: int
    entered: npt.NDArray[np.uint32]
    done: npt.NDArray[np.uint32]
    packets: list[FastPacket]
    registers: dict[int, int]


def _beats(packets: Sequence[bytes], size: int, what: str) -> npt.NDArray[np.uint32]:
    """Return beats as rows of words: whether it is a packet's last, then the data."""
    words = -(-size // _WORD_BYTES)
    parts = []
    for packet in packets:
        if not packet or len(packet) % size:
            raise EgretError(
                f"{what}: found a packet of {len(packet)} bytes, expected a multiple of {size}"
            )
        data = np.zeros((len(packet) // size, words * _WORD_BYTES), np.uint8)
        data[:, :size] = np.frombuffer(packet, np.uint8).reshape(-1, size)
        beats = np.zeros((len(data), words + 1), np.uint32)
        beats[:, 1:] = data.view("<u4")
        beats[-1, 0] = 1
        parts.append(beats)
    return np.concatenate([np.zeros((0, words + 1), np.uint32), *parts])


class _Log:
    """Words of the harness' output, in order."""

    def __init__(self, words: npt.NDArray[np.uint32]) -> None:
        self._words = words
        self._place = 0

    @property
    def is_empty(self) -> bool:
        return self._place == len(self._words)

    def take(self, count: int) -> npt.NDArray[np.uint32]:
        self._place += count
        return self._words[self._place - count : self._place]

    def next(self) -> int:
        return int(self.take(1)[0])


def _packets(beats: npt.NDArray[np.uint32]) -> list[FastPacket]:
    ends = np.flatnonzero(beats[:, 2] & _LAST) + 1
    return [
        FastPacket(part[:, 1].view(np.int32), part[:, 0], bool(part[-1, 2] & _ERROR))
        for part in np.split(beats, ends)
        if len(part)
    ]


class FastModel:
    """An accelerator's top, compiled with its harness.

    The first one of a design takes Verilator and the C++ compiler some ten seconds to minutes;
    the program is kept and shared by all later ones.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    verilog : str, optional
        Its Verilog; generated when absent.

    Raises
    ------
    EgretError
        The build failed.
    """

    def __init__(self, params: AcceleratorParams, verilog: str | None = None) -> None:
        self.params = params
        self._program = build_program(
            generate_verilog(params) if verilog is None else verilog, top_name(params)
        )

    def run(
        self,
        phases: Sequence[Phase],
        *,
        pauses: tuple[float, float, float] = (0.0, 0.0, 0.0),
        seed: int = 1,
        timeout: int = _TIMEOUT,
    ) -> list[PhaseRecord]:
        """Reset the core and play phases.

        Parameters
        ----------
        phases : sequence of Phase
            They follow each other without a reset. A phase that does not become complete is the
            last one.
        pauses : tuple of float
            Share of the cycles in which the weight and activation streams offer nothing new, and
            in which the output stream takes nothing.
        seed : int
            Seed of the pauses and of what registers without a reset begin with.
        timeout : int
            Cycles without any transfer after which a phase is given up.

        Returns
        -------
        list of PhaseRecord
            One for each phase that began.

        Raises
        ------
        EgretError
            A packet is not made of whole beats, or the program failed.
        """
        weight_bytes = self.params.bus_bits // 8
        act_bytes = self.params.activation_bus_bits // 8
        thresholds = [round(256 * share) for share in pauses]
        sizes = [-(-size // _WORD_BYTES) for size in (weight_bytes, act_bytes)]
        job = [np.array([len(phases), seed, timeout, *sizes, *thresholds], np.uint32)]
        for phase in phases:
            writes = [number for pair in phase.writes.items() for number in pair]
            weights = _beats(phase.weights, weight_bytes, "weights")
            columns = _beats(phase.activations, act_bytes, "activations")
            expected = [phase.results, phase.matrices, phase.settle]
            expected += [phase.limit, int(phase.may_fail)]
            job += [
                np.array([len(phase.writes), *writes, *expected, len(weights)], np.uint32),
                weights.reshape(-1),
                np.array([len(columns)], np.uint32),
                columns.reshape(-1),
                np.array([len(phase.reads), *phase.reads], np.uint32),
            ]
        with tempfile.TemporaryDirectory() as name:
            job_file, log_file = Path(name) / "job", Path(name) / "log"
            np.concatenate(job).astype("<u4").tofile(job_file)
            run_program(self._program, job_file, log_file)
            log = _Log(np.fromfile(log_file, "<u4"))
        records = []
        for phase in phases:
            if log.is_empty:
                break
            is_complete, cycles = bool(log.next()), log.next()
            entered, done, results = (log.take(log.next()) for _ in range(3))
            registers = log.take(len(phase.reads)).tolist()
            count_cycles(cycles)
            packets = _packets(results.reshape(-1, _RESULT_WORDS))
            named = dict(zip(phase.reads, registers, strict=True))
            records.append(PhaseRecord(is_complete, cycles, entered, done, packets, named))
        return records


def run_program(program: Path, *arguments: object) -> None:
    """Run a program that `build_program` built.

    Parameters
    ----------
    program : Path
        The program.
    *arguments : object
        What it is told, as text.

    Raises
    ------
    EgretError
        It failed; its last lines are in the message.
    """
    run = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if run.returncode != 0:
        last = " / ".join((run.stdout + run.stderr).strip().splitlines()[-3:])
        raise EgretError(f"{program.name}: ended with {run.returncode}: {last}")


def build_program(
    verilog: str, top: str, main: Path = _MAIN, *, prefix: str = "Vfast", flags: Sequence[str] = ()
) -> Path:
    """Build a design with a C++ program around it, where that is not built yet.

    Parameters
    ----------
    verilog : str
        Text of the design.
    top : str
        Top module.
    main : Path
        The program.
    prefix : str
        Name of the design's class in it.
    flags : sequence of str
        More options of Verilator.

    Returns
    -------
    Path
        The program, in `egret_sim.runner.build_folder`.

    Raises
    ------
    EgretError
        The build failed.
    """
    sources = (main.read_text(encoding="utf-8"), LINT_WAIVERS.read_text(encoding="utf-8"))
    parts = (verilog, top, *sources, prefix, *VERILATOR_FLAGS, *flags, version("verilator"))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    folder = build_folder() / f"{top}-{prefix[1:]}-{key}"
    program, stamp = folder / top, folder / "built"
    if stamp.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            write_text(folder / f"{top}.v", verilog)
            files = [str(LINT_WAIVERS), f"{top}.v", str(main)]
            verilate = ["verilator", "--cc", "--exe", *VERILATOR_FLAGS, *flags, "--prefix", prefix]
            verilate += ["--top-module", top, "-Mdir", ".", "-o", top, *files]
            # The wheel's makefile leaves out how the compiler is given the precompiled header.
            make = ["make", "-j2", "-s", "-f", f"{prefix}.mk", "OPT_FAST=-O2"]
            for command in (verilate, [*make, "CFG_CXXFLAGS_PCH_I=-include"]):
                run = subprocess.run(
                    command,
                    cwd=folder,
                    env=verilator_environment(),
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if run.returncode != 0:
                    last = " / ".join((run.stdout + run.stderr).strip().splitlines()[-5:])
                    raise EgretError(f"{top}: {command[0]} failed: {last}")
            stamp.touch()
    return program
