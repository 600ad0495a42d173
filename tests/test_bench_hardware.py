"""The hardware bench: what it counts, judges, keeps and writes."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import hardware
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
from numpy.typing import NDArray

from egret.errors import EgretError
from egret.params import PRESETS, AcceleratorParams
from egret_sim.fast import FastModel

TINY = AcceleratorParams(
    name="bench-tiny",
    lanes=2,
    parser_bits=4,
    parser_cut=4,
    bus_bits=32,
    parser="microcode",
    map_depth=64,
    activation_depth=64,
    activation_columns=2,
    row_depth=64,
)

AREA = Area(
    part="parsers",
    design="eg-k, W = 8",
    fpga="LFE5U",
    source="0123",
    bits=8,
    luts=1200,
    flip_flops=99,
    block_rams=1,
    multipliers=2,
    memory_slices=3,
    mhz=[210.0, 190.0, 200.0],
    slowest="a to b: 5.00 ns, 4 cells between",
    xilinx={"luts": 150, "flip_flops": 98, "block_rams": 0.5, "multipliers": 2},
    tools=["yosys 1", "nextpnr 2"],
    checks=[Check("LUT", 1200, 1600), Check("MHz", 200.0, 210, at_most=False)],
)
RUN = Run(
    part="networks",
    network="net",
    preset="m-ddr3",
    codes="auto",
    share=0.9,
    matrices=3,
    weights=1000,
    zeros=900,
    bus_bits=64,
    macs=16,
    cycles=110,
    alone=118,
    code_bits=6400,
    multiplied=100,
    roof=100.0,
    balance=0.99,
    columns=1050,
    rows=20,
    activation_columns=10,
    dense_bits=8000,
    dense_cycles=125,
    csc_bits=9000,
    csc_cycles=141,
    checks=[Check("cycles / roof", 1.1, 1.05)],
)


def sparse(rows: int, columns: int, share: float, seed: int) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    values = rng.integers(-9, 10, (rows, columns)).astype(np.int32)
    return np.where(rng.random((rows, columns)) < share, 0, values).astype(np.int32)


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["auto", "eg-k"])
def test_a_run_on_the_simulated_top(codes: str) -> None:
    matrices = {
        "tall": sparse(60, 30, 0.8, 1),
        "same": sparse(20, 30, 0.8, 2),
        "tiled": sparse(70, 100, 0.9, 3),
        "dense": sparse(30, 40, 0.0, 4),
    }
    run = hardware.measure_run("networks", "net", matrices, FastModel(TINY), codes, 0.8)
    assert (run.matrices, run.weights) == (4, 60 * 30 + 20 * 30 + 70 * 100 + 30 * 40)
    assert run.zeros == sum(int((values == 0).sum()) for values in matrices.values())
    assert run.multiplied >= run.weights - run.zeros
    assert run.rows == 60 + 20 + 70 + 30
    # Tiles below each other take the vector once more.
    assert run.columns == 30 + 30 + 2 * 100 + 40
    assert run.roof <= run.cycles < 3 * run.roof
    assert 1 <= run.port_ratio <= run.ratio
    assert run.dense_bits == 8 * run.weights
    # Eight bits of 32 for a MAC each: the MACs limit.
    assert run.dense_cycles == run.weights // 2
    assert 0.9 < run.balance <= 1
    limits = {check.limit: check for check in run.checks}
    assert limits["cycles / roof"].found == pytest.approx(run.cycles / run.roof, abs=1e-3)
    assert limits["cycles / roof"].bound == 1.05
    bits_limit = run.code_bits / 32 >= run.multiplied / 2
    assert ("bus busy" in limits) == bits_limit


def test_wrong_results_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    right = hardware.build_matrices

    def wrong(matrices: dict[str, NDArray[np.int32]], *others: Any, **more: Any) -> Any:
        changed = {name: values.copy() for name, values in matrices.items()}
        changed["b"][3, 2] += 1
        return right(changed, *others, **more)

    monkeypatch.setattr(hardware, "build_matrices", wrong)
    matrices = {name: sparse(8, 20, 0.1, seed) for seed, name in enumerate("abc")}
    with pytest.raises(EgretError, match=r"^b: the accelerator's results differ from NumPy's$"):
        hardware.measure_run("singles", "net", matrices, FastModel(TINY), "auto")


def test_the_limit_of_cycles_is_wider_for_sparse_networks() -> None:
    def bound(share: float) -> float | None:
        return hardware._run_checks(dataclasses.replace(RUN, share=share))[0].bound

    assert [bound(share) for share in (0.0, 0.8, 0.9, 0.95)] == [1.05, 1.05, 1.05, 1.10]


# --- area --------------------------------------------------------------------------------------

TEXT = """
module thing(a, clk, y);
  input [3:0] a;
  input clk;
  output [3:0] y;
  reg [3:0] y;
  always @(posedge clk) y <= y + a;
endmodule
"""


def test_area_is_measured_once_for_each_design(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    design = Design("thing", lambda: TEXT, "thing", 4, most_luts=3, least_mhz=100)
    first = hardware.measure_area("lanes", design, [1, 2], folder=tmp_path)
    assert (first.design, first.flip_flops, first.xilinx["flip_flops"]) == ("thing", 4, 4)
    assert len(first.mhz) == 2
    assert [(check.limit, check.passed) for check in first.checks] == [
        ("LUT", False),
        ("MHz", True),
    ]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("placed again")

    monkeypatch.setattr(hardware, "place", never)
    assert hardware.measure_area("lanes", design, [1, 2], folder=tmp_path) == first
    for changed, seeds, fresh in (
        (dataclasses.replace(design, verilog=lambda: TEXT.replace("+", "-")), [1, 2], False),
        (design, [1], False),
        (design, [1, 2], True),
    ):
        with pytest.raises(AssertionError, match="placed again"):
            hardware.measure_area("lanes", changed, seeds, folder=tmp_path, fresh=fresh)


@pytest.mark.parametrize("part", AREA_PARTS)
def test_designs(part: str) -> None:
    found = designs(part)
    assert len({design.name for design in found}) == len(found)
    assert all(design.top.isidentifier() for design in found)
    if part == "boards":
        assert {design.clock for design in found} == {"aclk"}
        assert {design.name.split()[0] for design in found} == set(PRESETS)


@pytest.mark.parametrize(("part", "name"), [("parsers", "textbook"), ("lanes", "XS lane")])
def test_designs_become_verilog(part: str, name: str) -> None:
    (design,) = (design for design in designs(part) if name in design.name)
    assert f"module {design.top}(" in design.verilog()


# --- figures -----------------------------------------------------------------------------------


def test_figures_come_back(tmp_path: Path) -> None:
    figures = Figures({"parsers": [AREA]}, {"networks": [RUN]})
    path = tmp_path / "figures.json"
    assert read_figures(path) == Figures()
    write_figures(figures, path)
    assert read_figures(path) == figures
    for text in ("[", "{}", json.dumps({"areas": {"parsers": [{"checks": []}]}, "runs": {}})):
        path.write_text(text)
        with pytest.raises(EgretError, match=r"figures\.json: not figures of this bench; remove"):
            read_figures(path)


def test_derived_figures_by_hand() -> None:
    assert AREA.median_mhz == 200
    # Eight bits a cycle at 200 MHz.
    assert AREA.codewords(4) == 400
    assert dataclasses.replace(AREA, bits=0).codewords(4) == 200
    assert dataclasses.replace(AREA, mhz=[3.0, 1.0]).median_mhz == 1
    assert (RUN.ratio, RUN.bus_busy) == (pytest.approx(1.1), pytest.approx(100 / 110))
    assert RUN.macs_busy == pytest.approx(100 / 16 / 110)


def test_tables_as_text() -> None:
    figures = Figures({"parsers": [AREA]}, {"networks": [RUN]})
    text = format_part(figures, "parsers")
    for wanted in ("1,200", "150.0", "210 190 200", "LUT 1,200 ≤ 1600 PASS", "MHz 200 ≥ 210 MISS"):
        assert wanted in text
    assert "slowest path of eg-k, W = 8: a to b" in text
    assert "Tools: yosys 1, nextpnr 2" in text
    assert "Limits: 1 of 2 reached\n  eg-k, W = 8: MHz 200 ≥ 210 MISS" in text
    # 1,200 LUTs for 1,600 M codewords of a bit.
    assert "1,600" in text
    assert "75.0" in text
    runs = format_part(figures, "networks")
    for wanted in (
        "net (3, 1,000 weights)",
        "90%",
        "1.100",
        "1.048",
        "0.909",
        "8,000",
        "141",
        "MISS",
    ):
        assert wanted in runs


def test_the_page_gets_the_tables_that_were_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n<!-- parsers -->\nold\n<!-- end -->\n\n"
        "text\n\n<!-- lanes -->\nkept\n<!-- end -->\n"
    )
    figures = Figures({"parsers": [AREA]}, {"networks": [RUN]})
    assert write_page(figures, page) == ["parsers"]
    text = page.read_text()
    assert "old" not in text
    assert "| eg-k, W = 8 | LFE5U | 8 | 1,200 | 150.0 |" in text
    assert "Limits: 1 of 2 reached." in text
    assert "(images/hardware-parsers.svg)\n\n<!-- end -->" in text
    assert text.startswith("# Title\n\n<!-- parsers -->\n\n| design |")
    assert text.endswith("<!-- end -->\n\ntext\n\n<!-- lanes -->\nkept\n<!-- end -->\n")
    assert write_page(figures, page) == ["parsers"]
    assert page.read_text() == text
    with pytest.raises(EgretError, match=r"cannot read this page"):
        write_page(figures, tmp_path / "none.md")


def test_charts(tmp_path: Path) -> None:
    runs = [dataclasses.replace(RUN, share=share, preset=p) for p in "ab" for share in (0.0, 0.9)]
    figures = Figures({"parsers": [AREA, dataclasses.replace(AREA, bits=0)]}, {"networks": runs})
    paths = draw(figures, tmp_path)
    assert [path.name for path in paths] == ["hardware-parsers.svg", "hardware-cycles.svg"]
    assert all("</svg>" in path.read_text() for path in paths)
    assert draw(Figures(), tmp_path) == []


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, measuring nothing."""

    def area(part: str, design: Design, seeds: list[int], **_: object) -> Area:
        return dataclasses.replace(
            AREA,
            part=part,
            design=design.name,
            source=hashlib.sha256(design.verilog().encode()).hexdigest()[:24],
            mhz=[float(s) for s in seeds],
        )

    def runs(part: str, *_: object) -> list[Run]:
        return [dataclasses.replace(RUN, part=part)]

    monkeypatch.setattr(hardware, "measure_area", area)
    monkeypatch.setattr(hardware, "_measure_runs", runs)
    return lambda *options: hardware.main(["--folder", str(tmp_path), *options])


def test_parts_are_kept_between_runs(
    quick: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick("--parts", "lanes", "singles", "--seeds", "5") == 0
    printed = capsys.readouterr().out
    assert AREA_PARTS["lanes"] in printed
    assert RUN_PARTS["singles"] in printed
    assert quick("--parts", "lanes", "--designs", "XS", "--seeds", "6") == 0
    figures = read_figures(tmp_path / "figures.json")
    assert set(figures.runs) == {"singles"}
    lanes = figures.areas["lanes"]
    assert [area.design for area in lanes] == [design.name for design in designs("lanes")]
    assert [area.mhz for area in lanes] == [[6.0], *[[5.0]] * (len(lanes) - 1)]


def test_figures_of_what_has_changed_since_are_left_out(
    quick: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    assert quick("--parts", "lanes", "--results", str(kept)) == 0
    figures = read_figures(kept)
    changed = figures.areas["lanes"][1]
    figures.areas["lanes"][1] = dataclasses.replace(changed, source="another")
    write_figures(figures, kept)
    assert quick("--parts", "lanes", "--designs", "XS", "--results", str(kept)) == 0
    assert f"{changed.design}: has changed since" in capsys.readouterr().err
    found = [area.design for area in read_figures(kept).areas["lanes"]]
    expected = [design.name for design in designs("lanes")]
    assert found == [name for name in expected if name != changed.design]


def test_faults_end_the_command(
    quick: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quick("--parts", "singles", "--page", str(tmp_path / "none.md")) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("benchmarks.hardware: ")
