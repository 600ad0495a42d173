"""The compiled harness: what goes in comes out, paused or not, and faults show."""

import dataclasses

import numpy as np
import pytest

from egret.errors import EgretError
from egret.params import PRESETS, AcceleratorParams
from egret_hw.rtl import top_name
from egret_sim.fast import FastModel, FastPacket, Phase

WIDE = AcceleratorParams(
    name="fast-wide", lanes=1, parser_bits=8, parser_cut=4, bus_bits=128, batch=5
)
NARROW = dataclasses.replace(WIDE, name="fast-narrow", bus_bits=32, batch=1)

# A stand-in with the ports of the top. It sends, for every bus word, the exclusive or of its 32-bit
# parts and of a column of activations, for which it waits. A word that begins with 0xFF reports an
# error, and 0xFE is never taken. The last word of a packet ends a matrix. Register 4 can be
# written; others read as their address.
STAND_IN = """
module NAME(
  input aclk, input aresetn,
  input s_axis_weight_tvalid, output s_axis_weight_tready,
  input [BUS-1:0] s_axis_weight_tdata, input s_axis_weight_tlast,
  input s_axis_act_tvalid, output s_axis_act_tready,
  input [ACT-1:0] s_axis_act_tdata, input s_axis_act_tlast,
  output reg m_axis_out_tvalid, input m_axis_out_tready, output reg [31:0] m_axis_out_tdata,
  output reg m_axis_out_tlast, output reg m_axis_out_tuser,
  input s_axil_awvalid, output s_axil_awready, input [11:0] s_axil_awaddr,
  input [2:0] s_axil_awprot,
  input s_axil_wvalid, output s_axil_wready, input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb,
  output reg s_axil_bvalid, input s_axil_bready, output [1:0] s_axil_bresp,
  input s_axil_arvalid, output s_axil_arready, input [11:0] s_axil_araddr,
  input [2:0] s_axil_arprot,
  output reg s_axil_rvalid, input s_axil_rready, output reg [31:0] s_axil_rdata,
  output [1:0] s_axil_rresp, output reg matrix_done, output irq);
  reg [31:0] held;
  reg [31:0] mixed;
  reg address_ok;
  integer i;
  wire go = s_axis_weight_tvalid & s_axis_act_tvalid & (~m_axis_out_tvalid | m_axis_out_tready)
    & (s_axis_weight_tdata[7:0] != 8'hFE) & (s_axis_act_tlast == s_axis_weight_tlast) & aresetn;
  assign s_axis_weight_tready = go;
  assign s_axis_act_tready = go;
  assign s_axil_awready = ~address_ok;
  assign s_axil_wready = address_ok & ~s_axil_bvalid;
  assign s_axil_arready = ~s_axil_rvalid;
  assign s_axil_bresp = 0;
  assign s_axil_rresp = 0;
  assign irq = 0;
  always @* begin
    mixed = 0;
    for (i = 0; i < BUS; i = i + 1) mixed[i % 32] = mixed[i % 32] ^ s_axis_weight_tdata[i];
    for (i = 0; i < ACT; i = i + 1) mixed[i % 32] = mixed[i % 32] ^ s_axis_act_tdata[i];
  end
  always @(posedge aclk) begin
    matrix_done <= go & s_axis_weight_tlast;
    if (m_axis_out_tready) m_axis_out_tvalid <= 0;
    if (go) begin
      m_axis_out_tvalid <= 1;
      m_axis_out_tdata <= mixed;
      m_axis_out_tlast <= s_axis_weight_tlast;
      m_axis_out_tuser <= s_axis_weight_tdata[7:0] == 8'hFF;
    end
    if (s_axil_awvalid & s_axil_awready & s_axil_awaddr == 4) address_ok <= 1;
    if (s_axil_wvalid & s_axil_wready & (&s_axil_wstrb)) begin
      held <= s_axil_wdata; s_axil_bvalid <= 1; address_ok <= 0;
    end
    if (s_axil_bvalid & s_axil_bready) s_axil_bvalid <= 0;
    if (s_axil_rvalid & s_axil_rready) s_axil_rvalid <= 0;
    else if (s_axil_arvalid & ~s_axil_rvalid) begin
      s_axil_rvalid <= 1;
      s_axil_rdata <= s_axil_araddr == 4 ? held : {20'd0, s_axil_araddr};
    end
    if (~aresetn) begin
      m_axis_out_tvalid <= 0; s_axil_bvalid <= 0; s_axil_rvalid <= 0; address_ok <= 0;
      matrix_done <= 0; held <= 32'd99;
    end
  end
endmodule
"""


def model(params: AcceleratorParams) -> FastModel:
    text = STAND_IN.replace("NAME", top_name(params)).replace("BUS", str(params.bus_bits))
    return FastModel(params, text.replace("ACT", str(8 * params.batch)))


def random_packets(seed: int, size: int, lengths: list[int]) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 254, (n, size), np.uint8).tobytes() for n in lengths]


def mixed(words: bytes, size: int, columns: bytes, batch: int) -> list[int]:
    found = []
    for place in range(len(words) // size):
        value = 0
        word = words[place * size : (place + 1) * size]
        column = columns[place * batch : (place + 1) * batch]
        for part in (word, column):
            for start in range(0, len(part), 4):
                value ^= int.from_bytes(part[start : start + 4], "little")
        found.append(value - (value >> 31 << 32))
    return found


@pytest.mark.parametrize("params", [NARROW, WIDE], ids=lambda params: params.name)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_words_and_columns_arrive_in_order(params: AcceleratorParams, share: float) -> None:
    size, lengths = params.bus_bits // 8, [1, 7, 300]
    weights = random_packets(1, size, lengths)
    activations = random_packets(2, params.batch, lengths)
    phase = Phase(weights, activations, results=3, matrices=3)
    (record,) = model(params).run([phase], pauses=(share, share, share), seed=3)
    assert record.is_complete
    assert [packet.values.tolist() for packet in record.packets] == [
        mixed(word, size, column, params.batch)
        for word, column in zip(weights, activations, strict=True)
    ]
    assert not any(packet.is_error for packet in record.packets)
    assert all(np.all(np.diff(packet.cycles) > 0) for packet in record.packets)
    # The stand-in ends a matrix in the cycle behind a packet's last word.
    assert (record.done - record.entered).tolist() == [1, 1, 1]
    if share:
        assert record.cycles > 1.5 * sum(lengths)
    else:
        assert record.entered.tolist() == [0, 7, 307]
        assert record.cycles < sum(lengths) + 25


def test_phases_and_registers() -> None:
    weights, activations = random_packets(4, 4, [5]), random_packets(5, 1, [5])
    send = Phase(weights, activations, results=1, matrices=1, reads=[4, 8, 0xFFC])
    phases = [send, Phase(writes={4: 0xDEADBEEF}, reads=[4]), send]
    records = model(NARROW).run(phases)
    assert [record.is_complete for record in records] == [True] * 3
    assert records[0].registers == {4: 99, 8: 8, 0xFFC: 0xFFC}
    assert records[1].registers == {4: 0xDEADBEEF}
    assert records[2].registers == {4: 0xDEADBEEF, 8: 8, 0xFFC: 0xFFC}
    np.testing.assert_array_equal(records[2].packets[0].values, records[0].packets[0].values)
    # Every run begins with a reset.
    assert model(NARROW).run([Phase(reads=[4])])[0].registers == {4: 99}


def test_an_error_ends_the_job() -> None:
    phase = Phase([b"\xff\0\0\0"], [b"\0"], results=1)
    records = model(NARROW).run([phase, Phase()])
    assert [record.is_complete for record in records] == [False]
    (packet,) = records[0].packets
    assert isinstance(packet, FastPacket)
    assert packet.is_error


@pytest.mark.parametrize(
    "phase",
    [
        Phase([b"\xfe\0\0\0"], [b"\0"], results=1),
        Phase([b"\1\0\0\0"], [b"\0"], results=2),
        Phase([b"\1\0\0\0"], [b"\0"], matrices=2),
        Phase([b"\1\0\0\0"]),
        Phase(writes={8: 1}),
    ],
    ids=["word", "result", "matrix", "activations", "register"],
)
def test_what_never_comes_is_given_up(phase: Phase) -> None:
    records = model(NARROW).run([phase, Phase()], timeout=500)
    assert [record.is_complete for record in records] == [False]


def test_packets_are_whole_beats() -> None:
    with pytest.raises(EgretError, match=r"^weights: found a packet of 3 bytes, expected a mul"):
        model(NARROW).run([Phase([b"abc"])])
    with pytest.raises(EgretError, match=r"^activations: found a packet of 0 bytes"):
        model(NARROW).run([Phase(activations=[b""])])


def test_a_build_that_fails_is_reported() -> None:
    with pytest.raises(EgretError, match=r"^egret_xs_ice40: verilator failed: "):
        FastModel(PRESETS["xs-ice40"], "module egret_xs_ice40(input aclk); nothing endmodule")
