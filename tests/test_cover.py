"""The collectors behind `make coverage`: what is counted, and what is called a hole."""

from pathlib import Path

import numpy as np
import pytest
from tests.cover import __main__ as command
from tests.cover.constants import constant_bits
from tests.cover.functional import Collector, groups_for
from tests.cover.structural import Structure
from tests.image_builder import Code, classes, code_packet, coded_matrix, golomb, map_packet
from tests.test_hw_accelerator import SETS

from egret.params import AcceleratorParams
from egret_sim.golden import GoldenAccelerator

PARAMS = SETS[2]


def sampled(params: AcceleratorParams) -> Collector:
    """Send a matrix with eg-k of order 3, then one of zeros with tables and runs."""
    golden, collector = GoldenAccelerator(params), Collector(params)
    x = np.ones((4, params.batch), np.int8)
    loads = [map_packet(params, 0, [0, 1, 2, 3])]
    for code, indices in (
        (Code(golomb(3, params)), np.full((1, 4), 1)),
        (Code(classes(1, 2), classes(0, 3)), np.full((2, 4), -1)),
    ):
        matrix = coded_matrix(params, indices, code, map_entries=4, shift=50, relu=1)
        for packet in (*loads, code_packet(params, code), matrix):
            taken = x if packet is matrix else None
            collector.sample(packet, golden.run_packet(packet, taken), "bursts")
        loads = []
    return collector


def test_packets_are_counted_by_what_they_have_in_common() -> None:
    counts = sampled(PARAMS).counts
    assert counts["code x order", ("eg-k", "k=3")] == 1
    assert counts["code x pauses", ("tables", "bursts")] == 1
    assert counts["code x code before", ("tables", "eg-k")] == 1
    assert counts["code x rows", ("eg-k", "one")] == 1
    assert counts["code x weights", ("tables", "all zero")] == 1
    assert counts["code x weights", ("eg-k", "no zero")] == 1
    assert counts["relu x pauses", ("yes", "bursts")] == 2
    assert counts["shift x results", ("47 and more", "yes")] == 2
    assert counts["error x pauses", ("NONE", "bursts")] == 5
    assert counts["error x pauses", ("NONE", "none")] == 0


def test_what_did_not_occur_is_a_hole() -> None:
    collector = sampled(PARAMS)
    holes = {(group.name, values) for group, values in collector.holes()}
    assert ("code x order", ("eg-k", "k=2")) in holes
    assert ("code x order", ("eg-k", "k=3")) not in holes
    assert ("error x pauses", ("CRC", "none")) in holes
    found = {group.name: number for group, number in collector.totals()}
    assert found["code x order"] == 1


def test_only_what_an_accelerator_knows_is_expected() -> None:
    codes = {
        params.name: {
            values[0]
            for group in groups_for(params)
            if group.name == "code x pauses"
            for values in group.bins
        }
        for params in SETS[:4]
    }
    assert codes["l1w1"] == {"eg-k", "eg-k dense"}
    assert codes["l2w4c2b3"] == {"eg-k", "eg-k dense", "eg-run"}
    assert len(codes["l4w4micro"]) == 7


def point(page: str, what: str, line: int, hierarchy: str, count: int) -> str:
    parts = {"f": "x.v", "l": str(line), "page": page, "o": what, "h": hierarchy}
    joined = "".join(f"\x01{key}\x02{value}" for key, value in parts.items())
    return f"C '{joined}' {count}\n"


def test_verilators_files_add_up(tmp_path: Path) -> None:
    file = tmp_path / "coverage.dat"
    file.write_text(
        "# SystemC::Coverage-3\n"
        + point("v_line/lane", "block", 7, "TOP.lane_0", 0)
        + point("v_line/lane", "block", 7, "TOP.lane_1", 2)
        + point("v_branch/lane", "else", 9, "TOP.lane_0", 0)
        + point("v_toggle/lane", "sum[3]:0->1", 3, "TOP.lane_0", 1)
        + point("v_toggle/lane", "sum[3]:1->0", 3, "TOP.lane_0", 0)
        + point("v_toggle/lane", "__02412[0]:1->0", 3, "TOP.lane_0", 0)
        + point("v_toggle/lane", "go:0->1", 4, "TOP.lane_0", 0)
        + point("v_toggle/lane", "table[0][5]:0->1", 5, "TOP.lane_0", 0)
        + point("v_toggle/lane", "table[1][5]:0->1", 5, "TOP.lane_0", 1)
    )
    structure = Structure()
    structure.add(file)
    assert structure.modules() == ["lane"]
    assert structure.totals("lane") == (1, 2, 2, 5)
    assert list(structure.missing_lines()) == [("lane", 9)]
    assert structure.missing_toggles() == {("lane", "sum"): {3}, ("lane", "go"): set()}
    structure.add(file)
    assert structure.lines["lane", 7] == 4


PAIR = """
module leaf(input clk, input [1:0] i, output reg [2:0] o = 3'b100);
  wire [1:0] both = {i[1] & i[0], 1'b0};
  always @(posedge clk) o <= {o[2], i & both};
endmodule
module pair(input clk, input [2:0] i, output [2:0] a, output [2:0] b);
  leaf first(.clk(clk), .i({i[0], 1'b1}), .o(a));
  leaf second(.clk(clk), .i(i[2:1]), .o(b));
endmodule
"""


def test_bits_are_constant_that_never_change_in_any_instance(tmp_path: Path) -> None:
    found = constant_bits(PAIR, "pair", tmp_path)
    # The lowest bit of `first.i` is 1 always, that of `second.i` is not.
    assert ("leaf", "i") not in found
    assert found["leaf", "both"] == {0}
    assert found["leaf", "o"] == {0, 2}
    assert found["pair", "a"] == {0, 2}


def test_holes_get_the_reason_of_the_first_rule_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "holes.toml"
    file.write_text(
        "[[hole]]\nkind = 'toggle'\naccelerator = 'b'\nmatch = 'lane'\nreason = 'other'\n"
        "[[hole]]\nkind = 'toggle'\nmatch = 'lane[.]sum'\nreason = 'wide'\n"
    )
    monkeypatch.setattr(command, "EXPLANATIONS", file)
    holes = [command.Hole("toggle", "lane.sum: 3"), command.Hole("line", "lane.sum: 3")]
    assert [hole.reason for hole in command.explain(holes, "a")] == ["wide", ""]
    assert [hole.reason for hole in command.explain(holes, "b")] == ["other", ""]
