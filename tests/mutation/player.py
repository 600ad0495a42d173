"""Plays scripts of the accelerator's bench in a compiled program, on the design and its mutants.

It stands in for `egret_sim.benches.accelerator`: the same steps, the same recording, without Python
on the clock edge, and for every mutant that the model holds.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from egret.params import AcceleratorParams
from egret_hw.registers import register_named
from egret_hw.rtl import top_name
from egret_sim.benches.accelerator import PAUSES, STATUS, TRICKLE, Frame, Job, Recording, Step
from egret_sim.fast import build_program, run_program

__all__ = ["ENDINGS", "NO_LIMIT", "Played", "Player"]

MAIN = Path(__file__).parent / "player.cpp"
PREFIX = "Vplayed"
_WORD_BYTES = 4
_FILES = 6
NO_LIMIT = 2**32 - 1
ENDINGS = ("played", "locked up", "unstable", "endless", "not settled")
"""How a script may end: in full; in a time-out; with what was offered and not taken changing;
with far more cycles than the design itself needs; in a loop of gates that never settles."""
# In the order of the enumeration in player.cpp.
_STEPS = (
    "weights",
    "activations",
    "offer",
    "flush",
    "expect",
    "clear",
    "reset",
    "wait",
    "sent",
    "status",
    "read",
    "write",
)


@dataclass(frozen=True)
class Played:
    """How a mutant's script ended, one of `ENDINGS`, and what was recorded."""

    ending: str
    recording: Recording


def _beats(packet: bytes, size: int) -> NDArray[np.uint32]:
    """Return a packet as rows of words: whether it is its last beat, then the data."""
    words = -(-size // _WORD_BYTES)
    count = -(-len(packet) // size)
    data = np.zeros((count, words * _WORD_BYTES), np.uint8)
    padded = np.frombuffer(packet.ljust(count * size, b"\0"), np.uint8)
    data[:, :size] = padded.reshape(-1, size)
    beats = np.zeros((count, words + 1), np.uint32)
    beats[:, 1:] = data.view("<u4")
    beats[-1, 0] = 1
    return beats


class Player:
    """A model of a design and of its mutants.

    Parameters
    ----------
    params : AcceleratorParams
        The accelerator.
    verilog : str
        Its Verilog. With `mutants`, it has an input `mutant` that chooses one.
    mutants : bool
        Whether it has.
    flags : sequence of str
        More options of Verilator.
    jobs : int
        Programs that run at a time.

    Raises
    ------
    EgretError
        The build failed.
    """

    def __init__(
        self,
        params: AcceleratorParams,
        verilog: str,
        *,
        mutants: bool = True,
        flags: Sequence[str] = (),
        jobs: int = 2,
    ) -> None:
        self.params = params
        self.jobs = jobs
        options = ["-CFLAGS", f"-DVL_USER_FATAL -DMUTANTS={int(mutants)}", "-Wno-fatal"]
        # Many modules are as many small files, which take longer than a few large ones.
        options += ["-Wno-lint", "--output-groups", str(_FILES), *flags]
        self._program = build_program(verilog, top_name(params), MAIN, prefix=PREFIX, flags=options)

    @property
    def model(self) -> str:
        """Name of the model's folder, which tells the designs apart."""
        return self._program.parent.name

    def _words(self, step: Step) -> list[NDArray[np.uint32]]:
        kind = _STEPS.index(step.kind)
        match step.kind:
            case "weights" | "activations" | "offer":
                params = self.params
                bits = params.bus_bits if step.kind == "weights" else params.activation_bus_bits
                beats = _beats(step.data, bits // 8)
                return [np.array([kind, 0, len(beats)], np.uint32), beats.reshape(-1)]
            case "clear":
                control = register_named("CONTROL")
                return [np.array([kind, control.offset, control.field("reset").mask], np.uint32)]
            case "write":
                value = int.from_bytes(step.data, "little")
                return [np.array([kind, step.count, value], np.uint32)]
            case _:
                return [np.array([kind, step.count, 0], np.uint32)]

    def play(
        self,
        job: Job,
        mutants: Sequence[int],
        *,
        limit: int = NO_LIMIT,
        coverage: Path | None = None,
    ) -> dict[int, Played]:
        """Play a job on mutants.

        Parameters
        ----------
        job : Job
            What to play.
        mutants : sequence of int
            Their numbers; 0 is the design as it is.
        limit : int
            Cycles after which a mutant is given up.
        coverage : Path, optional
            File for Verilator's coverage; the model must have been built with it.

        Returns
        -------
        dict of int to Played

        Raises
        ------
        EgretError
            The program failed.
        """
        if not mutants:
            return {}
        bus_bytes = (self.params.bus_bits // 8, self.params.activation_bus_bits // 8)
        words = [-(-size // _WORD_BYTES) for size in bus_bytes]
        registers = [register_named(name.upper()).offset for name in STATUS]
        head = [job.seed, job.timeout, [*PAUSES, TRICKLE].index(job.pause), *words, limit]
        head += [len(registers), *registers, len(job.steps)]
        parts = [np.array(head, np.uint32)]
        for step in job.steps:
            parts += self._words(step)
        with tempfile.TemporaryDirectory() as name:
            job_file = Path(name) / "job"
            np.concatenate(parts).astype("<u4").tofile(job_file)

            def run(share: Sequence[int]) -> dict[int, Played]:
                log_file = Path(name) / f"log-{share[0]}"
                run_program(self._program, job_file, log_file, *share)
                if coverage is not None:
                    coverage.write_bytes(Path(f"{log_file}.coverage").read_bytes())
                return dict(zip(share, _read_log(log_file, len(share)), strict=True))

            shares = [mutants[place :: self.jobs] for place in range(self.jobs)]
            with ThreadPoolExecutor(self.jobs) as pool:
                found = list(pool.map(run, [share for share in shares if share]))
        return {number: each for share in found for number, each in share.items()}


def _read_log(path: Path, runs: int) -> list[Played]:
    words = np.fromfile(path, "<u4")
    place = 0

    def take(count: int) -> NDArray[np.uint32]:
        nonlocal place
        place += count
        return words[place - count : place]

    played = []
    for _ in range(runs):
        ending, cycles, frames = take(3).tolist()
        recording = Recording(cycles=cycles, locked_up=ENDINGS[ending] != "played")
        for _ in range(frames):
            error, size = take(2).tolist()
            recording.frames.append(Frame(take(size).view("<i4"), bool(error)))
        names = [*STATUS, "irq", "clock"]
        statuses = take(int(take(1)[0])).reshape(-1, len(names)).tolist()
        recording.statuses = [dict(zip(names, status, strict=True)) for status in statuses]
        recording.matrix_cycles = take(int(take(1)[0])).tolist()
        recording.reads = take(int(take(1)[0])).tolist()
        played.append(Played(ENDINGS[ending], recording))
    return played
