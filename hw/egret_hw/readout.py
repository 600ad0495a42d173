"""Read-out: carries rows' sums from lane to lane to the row store."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.elastic import ElasticBuffer
from egret_hw.layouts import lane_result_layout

__all__ = ["ReadoutNode", "sums_layout"]


def sums_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a row's sum, or of a part of it, outside its lane.

    Returns
    -------
    data.StructLayout
        `parity`, which of the two matrices under way; `substream`; `last`, the substream's last one
        of the matrix; `sums`, one accumulator for each vector of the batch.
    """
    return data.StructLayout(
        {
            "parity": 1,
            "substream": max(1, (params.substreams - 1).bit_length()),
            "last": 1,
            "sums": lane_result_layout(params)["sums"].shape,
        }
    )


class ReadoutNode(wiring.Component):
    """One link of the systolic read-out chain.

    A chain of registered links replaces a multiplexer over all lanes, whose wires would set the
    clock. This lane takes one turn for each that all the lanes behind it had, so that no lane falls
    behind the others, which get their bits together with it.

    Latency 1 cycle, throughput 1 row a cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.
    lanes_behind : int
        Lanes whose sums come from the link behind.

    Attributes
    ----------
    lane : In(stream of sums_layout)
        This lane's sums.
    behind : In(stream of sums_layout)
        Sums from the link behind.
    o : Out(stream of sums_layout)
        Sums to the link before.
    """

    def __init__(self, params: AcceleratorParams, lanes_behind: int) -> None:
        self.params = params
        self._lanes_behind = lanes_behind
        super().__init__(
            {
                "lane": In(stream.Signature(sums_layout(params))),
                "behind": In(stream.Signature(sums_layout(params))),
                "o": Out(stream.Signature(sums_layout(params))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.buffer = buffer = ElasticBuffer(sums_layout(self.params))
        wiring.connect(m, buffer.o, wiring.flipped(self.o))
        # Sums from behind that go first while both wait.
        turns = Signal(range(self._lanes_behind + 1))
        with m.If(self.lane.valid & ((turns == 0) | ~self.behind.valid)):
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
        with m.If(self.lane.valid & self.lane.ready):
            m.d.sync += turns.eq(self._lanes_behind)
        with m.Elif(self.behind.valid & self.behind.ready & (turns != 0)):
            m.d.sync += turns.eq(turns - 1)
        return m
