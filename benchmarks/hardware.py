"""What the accelerator costs and how fast it is: area, clock, and cycles on packed matrices.

Area and clock: Yosys and nextpnr, out of context unless a board is named, three seeds. Cycles: the
generated Verilog of the whole top in Verilator, fed from files as fast as it takes words; every
result is compared with NumPy's. Each limit that Egret sets itself has its verdict beside its
figure.

    python -m benchmarks.hardware
    python -m benchmarks.hardware resnet20.th stories260K.bin --parts networks singles
    python -m benchmarks.hardware --parts parsers lanes --page docs/hardware-figures.md

Figures are kept, so that parts can be measured one after the other; what has not changed since is
not measured again (`--fresh` does). The page and the charts show everything that is kept.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.codec_report import Check
from benchmarks.hardware_designs import Design, designs
from benchmarks.hardware_report import (
    AREA_PARTS,
    RUN_PARTS,
    Area,
    Figures,
    Run,
    draw,
    format_part,
    read_figures,
    write_figures,
    write_page,
)
from benchmarks.workloads import SHARES, digits_models, draw_weights, prune, read_model
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.files import write_text
from egret.image import HardwareImage, MatrixPacket, Packet, build_matrices
from egret.image_format import MATRIX_BYTES, MATRIX_FIELDS
from egret.params import CODE_NAMES, PRESETS, AcceleratorParams
from egret_hw import place as place_module
from egret_hw.place import SEEDS, count_xilinx7, place
from egret_hw.registers import COUNTERS
from egret_hw.yowasp import tool_version
from egret_sim.fast import FastModel, Phase, PhaseRecord
from egret_sim.report import csc_cost, dense_int8_cost

__all__ = ["check_results", "expected_results", "main", "measure_area", "measure_run"]

FOLDER = Path("build/bench-hw")
"""Where figures are kept and charts go."""
LEAST_WEIGHTS = 4096
"""Matrices with fewer weights are not counted among a network's."""
SCHEME = "int8 2^-n"
NETWORK_PRESETS = ("m-ddr3", "l-onchip")
SINGLES = ((64, 172), (300, 784), (1024, 1024))
"""Shapes of the single matrices."""
SINGLE_ENTROPY = 5.0
"""Bits per weight of what they are drawn from, before they are pruned."""

_CODES = ("auto", *CODE_NAMES)
_SEED = 4
_SETUP_CYCLES = 3000
"""Longer than any table takes to load."""
_PASSES = 2
"""Passes of a network between a first one and the end, over which its cycles are averaged."""
_SPARSE = 0.95
_COUNTERS = {register.name: register.offset for register in COUNTERS}


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


# --- area and clock ----------------------------------------------------------------------------


class _Kept:
    """Results of the tools by what they were given."""

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        self._folder = folder
        self._fresh = fresh

    def _path(self, design: Design, verilog: str, seeds: Sequence[int]) -> Path:
        parts = [verilog, repr(design), repr(tuple(seeds)), tool_version("yosys")]
        parts += [tool_version(design.part.tool), Path(place_module.__file__).read_text("utf-8")]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
        return self._folder / f"{design.top}-{key}.json"

    def find(self, design: Design, verilog: str, seeds: Sequence[int]) -> dict[str, Any] | None:
        """Return what was kept."""
        path = self._path(design, verilog, seeds)
        if self._fresh or not path.exists():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep(
        self, design: Design, verilog: str, seeds: Sequence[int], result: Mapping[str, Any]
    ) -> None:
        """Keep a result."""
        write_text(self._path(design, verilog, seeds), json.dumps(result, indent=1) + "\n")


def _fingerprint(verilog: str) -> str:
    return hashlib.sha256(verilog.encode()).hexdigest()[:24]


def measure_area(
    part: str, design: Design, seeds: Sequence[int], *, folder: Path, fresh: bool = False
) -> Area:
    """Place and route a design, and count it for Xilinx' 7 series.

    Parameters
    ----------
    part : str
        Of `AREA_PARTS`.
    design : Design
        The design.
    seeds : sequence of int
        nextpnr's seeds.
    folder : Path
        Where results are kept.
    fresh : bool
        Measure anew what is kept.
    """
    verilog = design.verilog()
    kept = _Kept(folder, fresh=fresh)
    result = kept.find(design, verilog, seeds)
    if result is None:
        placed = place(
            verilog,
            design.top,
            design.part,
            clock=design.clock,
            seeds=seeds,
            wide_luts=design.wide_luts,
            once=design.once,
            floorplan=design.floorplan,
            progress=_say,
        )
        _say(f"{design.top}: 7 series")
        result = {
            "placed": dataclasses.asdict(placed),
            "xilinx": dataclasses.asdict(count_xilinx7(verilog, design.top, once=design.once)),
        }
        kept.keep(design, verilog, seeds, result)
    else:
        _say(f"{design.top}: kept, unchanged")
    xilinx = dict(result["xilinx"])
    xilinx.pop("tool")
    # As it will read from the file: with lists for tuples.
    found: dict[str, Any] = json.loads(json.dumps(result["placed"]))
    area = Area(
        part=part,
        design=design.name,
        fpga=found.pop("part"),
        source=_fingerprint(verilog),
        bits=design.bits,
        xilinx=xilinx,
        **found,
    )
    checks = [
        Check(limit, figure, bound, at_most)
        for limit, figure, bound, at_most in (
            ("LUT", area.luts, design.most_luts, True),
            ("MHz", round(area.median_mhz, 1), design.least_mhz, False),
        )
        if bound is not None
    ]
    return dataclasses.replace(area, checks=checks)


# --- cycles ------------------------------------------------------------------------------------


def _read(packet: Packet, name: str) -> int:
    place = MATRIX_FIELDS[name]
    header = int.from_bytes(packet.data[:MATRIX_BYTES], "little")
    return header >> place.offset & ((1 << place.width) - 1)


def expected_results(
    image: HardwareImage, matrices: Mapping[str, NDArray[np.int32]], rng: np.random.Generator
) -> tuple[list[bytes], list[NDArray[np.int32]]]:
    """Draw activations; return their packets, and the packets of results."""
    activations, results = [], []
    current = np.zeros((0, image.params.batch), np.int64)
    sums: NDArray[np.int64] | int = 0
    for packet in image.matrices:
        if packet.load_activations:
            shape = (packet.columns, image.params.batch)
            drawn = rng.integers(-128, 128, shape).astype(np.int8)
            activations.append(image.params.pad_activations(drawn.tobytes()))
            current = drawn.astype(np.int64)
        down = slice(packet.first_row, packet.first_row + packet.rows)
        across = slice(packet.first_column, packet.first_column + packet.columns)
        # Where nothing is multiplied, it may also be a spacer, which has the name of the next.
        if packet.multiplied:
            sums = sums + matrices[packet.name][down, across].astype(np.int64) @ current
        if not _read(packet, "more"):
            total = np.broadcast_to(sums, (packet.rows, image.params.batch))
            results.append(total.astype(np.int32).reshape(-1))
            sums = 0
    return activations, results


def check_results(
    record: PhaseRecord, results: Sequence[NDArray[np.int32]], names: Sequence[str]
) -> None:
    """Compare packets of results, each with its name for messages.

    Raises
    ------
    EgretError
        One is missing, is an error, or differs.
    """
    if not record.is_complete or len(record.packets) != len(results):
        raise EgretError(
            f"{names[min(len(record.packets), len(names) - 1)]}: the accelerator sent "
            f"{len(record.packets)} packets, expected {len(results)}"
        )
    for name, packet, wanted in zip(names, record.packets, results, strict=True):
        if packet.is_error or not np.array_equal(packet.values, wanted):
            raise EgretError(f"{name}: the accelerator's results differ from NumPy's")


def _balance(packets: Iterable[MatrixPacket], params: AcceleratorParams) -> float:
    """Return the mean lane's cycles over the busiest one's, matrix by matrix."""
    mean = most = 0.0
    for packet in packets:
        bits = np.reshape(packet.substream_bits, (params.lanes, params.slots)).max(axis=1)
        cycles = np.maximum(bits / params.parser_cut, packet.lane_work)
        mean += float(cycles.mean())
        most += float(cycles.max())
    return mean / most


def measure_run(
    part: str,
    network: str,
    matrices: Mapping[str, NDArray[np.int32]],
    model: FastModel,
    codes: str,
    share: float = 0.0,
) -> Run:
    """Run matrices on the simulated top, back to back, and compare every result.

    Parameters
    ----------
    part : str
        Of `RUN_PARTS`; limits hold for "networks".
    network : str
        Name for tables.
    matrices : mapping of str to ndarray of int32, shape (rows, columns)
        The matrices.
    model : FastModel
        The accelerator.
    codes : str
        As for `egret.image.build_matrices`.
    share : float
        Share of the weights that was pruned away, for tables.

    Raises
    ------
    EgretError
        A matrix does not fit, or a result is wrong.
    """
    params = model.params
    image = build_matrices(matrices, params, codes=codes)
    packets = image.matrices
    activations, results = expected_results(image, matrices, np.random.default_rng(_SEED))
    reads = list(_COUNTERS.values())
    setup = Phase([p.data for p in image.setup], settle=_SETUP_CYCLES, reads=reads)

    def passes(count: int) -> Phase:
        return Phase(
            [p.data for p in image.packets] * count,
            activations * count,
            results=len(results) * count,
            matrices=len(packets) * count,
            reads=reads,
        )

    # Alone, the first matrix's fill and the last one's drain show; between two passes they do not.
    records = model.run([setup, passes(1), passes(1 + _PASSES)])
    names = [p.name for p in packets if not _read(p, "more")]
    check_results(records[1], results, names)
    check_results(records[2], results * (1 + _PASSES), names * (1 + _PASSES))
    alone, several = (
        {name: after.registers[at] - before.registers[at] for name, at in _COUNTERS.items()}
        for before, after in pairwise(records)
    )
    multiplied = sum(p.multiplied for p in packets)
    if alone["MULTIPLIES"] != multiplied:
        raise EgretError(
            f"{network}: the accelerator multiplied {alone['MULTIPLIES']} weights, expected "
            f"{multiplied}"
        )
    inside = (several["CYCLES"] - alone["CYCLES"]) / _PASSES
    bus, macs = params.bus_bits, params.lanes
    dense = [
        dense_int8_cost(values.shape[0], values.shape[1], macs) for values in matrices.values()
    ]
    csc = [csc_cost(values, macs) for values in matrices.values()]
    run = Run(
        part=part,
        network=network,
        preset=params.name,
        codes=codes,
        share=share,
        matrices=len(matrices),
        weights=sum(values.size for values in matrices.values()),
        zeros=sum(values.size - int(np.count_nonzero(values)) for values in matrices.values()),
        bus_bits=bus,
        macs=macs,
        cycles=round(inside) if part == "networks" else alone["CYCLES"],
        alone=alone["CYCLES"],
        code_bits=sum(p.code_bits for p in packets),
        multiplied=multiplied,
        roof=sum(max(p.code_bits / bus, p.multiplied / macs) for p in packets),
        balance=_balance(packets, params),
        columns=sum(packet.columns for packet in packets if packet.load_activations),
        activation_columns=params.activation_columns,
        rows=sum(len(packet) for packet in results) // params.batch,
        dense_bits=sum(cost.bits for cost in dense),
        dense_cycles=sum(max(-(-cost.bits // bus), cost.mac_cycles) for cost in dense),
        csc_bits=sum(cost.bits for cost in csc),
        csc_cycles=sum(max(-(-cost.bits // bus), cost.mac_cycles) for cost in csc),
    )
    return dataclasses.replace(run, checks=_run_checks(run) if part == "networks" else [])


def _run_checks(run: Run) -> list[Check]:
    is_bit_bound = run.code_bits / run.bus_bits >= run.multiplied / run.macs
    busy = (
        Check("bus busy", round(run.bus_busy, 3), 0.95, at_most=False)
        if is_bit_bound
        else Check("MACs busy", round(run.macs_busy, 3), 0.93, at_most=False)
    )
    return [
        Check("cycles / roof", round(run.ratio, 3), 1.10 if run.share >= _SPARSE else 1.05),
        busy,
        Check("balance", round(run.balance, 3), 0.97, at_most=False),
    ]


def _matrices(tensors: Mapping[str, NDArray[np.int32]]) -> dict[str, NDArray[np.int32]]:
    """Return what is large enough, as rows and columns."""
    return {
        name: values.reshape(values.shape[0], -1)
        for name, values in tensors.items()
        if values.size >= LEAST_WEIGHTS
    }


def _networks(files: Sequence[Path]) -> Iterator[tuple[str, float, dict[str, NDArray[np.int32]]]]:
    """Yield networks by name and share that is pruned away."""
    for model in (*map(read_model, files), *digits_models()):
        for share in SHARES:
            coded = model.case(SCHEME, share).coded
            yield model.name, share, _matrices({n: t.values for n, t in coded.items()})


def _singles() -> Iterator[tuple[str, float, dict[str, NDArray[np.int32]]]]:
    for rows, columns in SINGLES:
        (drawn,) = draw_weights(max(rows, columns) ** 2, 1.0, [SINGLE_ENTROPY])
        for share in SHARES:
            values = np.rint(prune(drawn[:rows, :columns], share)).astype(np.int32)
            name = f"{rows} × {columns} GG"
            yield name, share, {name: values}


def _measure_runs(part: str, files: Sequence[Path], presets: Sequence[str]) -> list[Run]:
    cases = list(_networks(files) if part == "networks" else _singles())
    runs = []
    for preset in presets:
        _say(f"{preset}: building the simulation")
        model = FastModel(PRESETS[preset])
        for network, share, matrices in cases:
            # The single matrices show how they fill, not what each code gives.
            for codes in _CODES if part == "networks" else _CODES[:1]:
                runs.append(measure_run(part, network, matrices, model, codes, share))
                _say(f"{runs[-1].title}: {runs[-1].cycles:,} cycles, {runs[-1].ratio:.3f} × roof")
    return runs


# --- the whole bench ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, keep the figures, draw the charts."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.hardware",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = [*AREA_PARTS, *RUN_PARTS]
    parser.add_argument(
        "weights",
        nargs="*",
        type=Path,
        help="checkpoints that egret pack reads, or llama2.c's *.bin, besides what ships",
    )
    parser.add_argument(
        "--parts", nargs="+", choices=every, default=every, help="what to measure (everything)"
    )
    parser.add_argument(
        "--designs", help="only designs whose name holds this text, of the parts with designs"
    )
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=sorted(PRESETS),
        default=NETWORK_PRESETS,
        help=f"what matrices run on ({' '.join(NETWORK_PRESETS)})",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=SEEDS, help="nextpnr's seeds (1 2 3)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="place and route also what has not changed"
    )
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help=f"where all else is kept ({FOLDER})"
    )
    parser.add_argument(
        "--results", type=Path, help="JSON of the kept figures (figures.json in --folder)"
    )
    parser.add_argument(
        "--page", type=Path, help="Markdown file whose tables are to show the kept figures"
    )
    parser.add_argument("--charts", type=Path, help="folder of the SVGs (that of the kept figures)")
    parsed = parser.parse_args(arguments)
    kept_file = parsed.results or parsed.folder / "figures.json"
    try:
        figures = read_figures(kept_file)
        for part in parsed.parts:
            _say(f"part {part}")
            if part in RUN_PARTS:
                figures.runs[part] = _measure_runs(part, parsed.weights, parsed.presets)
            else:
                chosen = [
                    design
                    for design in designs(part)
                    if parsed.designs is None or parsed.designs in design.name
                ]
                measured = [
                    measure_area(
                        part, design, parsed.seeds, folder=parsed.folder, fresh=parsed.fresh
                    )
                    for design in chosen
                ]
                _merge(figures, part, measured)
            write_figures(figures, kept_file)
            print(format_part(figures, part), flush=True)
        for path in draw(figures, parsed.charts or parsed.folder):
            print(f"drawn: {path}")
        if parsed.page is not None:
            print(f"{parsed.page}: tables of {', '.join(write_page(figures, parsed.page))}")
    except EgretError as error:
        print(f"benchmarks.hardware: {error}", file=sys.stderr)
        return 1
    return 0


def _merge(figures: Figures, part: str, measured: Sequence[Area]) -> None:
    """Put new figures to those of the part's other designs, but for what has changed since."""
    areas = {area.design: area for area in figures.areas.get(part, [])}
    new = {area.design: area for area in measured}
    found = []
    for design in designs(part):
        area = new.get(design.name) or areas.get(design.name)
        if area is None:
            continue
        if design.name in new or area.source == _fingerprint(design.verilog()):
            found.append(area)
        else:
            _say(f"{design.name}: has changed since it was measured, its figures are left out")
    figures.areas[part] = found


if __name__ == "__main__":
    sys.exit(main())
