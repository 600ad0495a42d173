"""Read-out: carries finished rows from lane to lane to the requantiser."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.elastic import ElasticBuffer
from egret_hw.lane import lane_result_layout

__all__ = ["ReadoutNode", "row_layout"]


def row_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a finished row outside its lane.

    Returns
    -------
    data.StructLayout
        `entry`, its place in the rows table: row number × S + substream; `sums`, one accumulator
        for each vector of the batch.
    """
    return data.StructLayout(
        {
            "entry": (params.row_slots * params.substreams - 1).bit_length(),
            "sums": lane_result_layout(params)["sums"].shape,
        }
    )


class ReadoutNode(wiring.Component):
    """One link of the systolic read-out chain.

    The rows of this lane and those of the lanes behind it take turns. A chain of registered links
    replaces a multiplexer over all lanes, whose wires would set the clock.

    Latency 1 cycle, throughput 1 row a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    lane : In(stream of row_layout)
        This lane's rows.
    behind : In(stream of row_layout)
        Rows from the link behind.
    o : Out(stream of row_layout)
        Rows to the link before.
    busy : Out(1)
        A row is inside.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "lane": In(stream.Signature(row_layout(params))),
                "behind": In(stream.Signature(row_layout(params))),
                "o": Out(stream.Signature(row_layout(params))),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.buffer = buffer = ElasticBuffer(row_layout(self.params))
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        prefer_lane = Signal()
        with m.If(self.lane.valid & (prefer_lane | ~self.behind.valid)):
            m.d.comb += [
                buffer.i.valid.eq(1),
                buffer.i.payload.eq(self.lane.payload),
                self.lane.ready.eq(buffer.i.ready),
            ]
        with m.Else():
            m.d.comb += [
                buffer.i.valid.eq(self.behind.valid),
                buffer.i.payload.eq(self.behind.payload),
                self.behind.ready.eq(buffer.i.ready),
            ]
        with m.If(buffer.i.valid & buffer.i.ready):
            m.d.sync += prefer_lane.eq(self.behind.ready)
        m.d.comb += self.busy.eq(buffer.level.any())
        return m
