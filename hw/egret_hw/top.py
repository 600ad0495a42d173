"""The top: the core behind AXI4-Stream and AXI4-Lite ports with their usual names."""

from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import ErrorKind
from egret.params import RESULT_BITS, AcceleratorParams
from egret_hw.accelerator import Accelerator
from egret_hw.axi_lite import AxiLiteSlave, axi_lite_ports

__all__ = ["AcceleratorTop"]

_REGISTERS_PREFIX = "s_axil_"


class AcceleratorTop(wiring.Component):
    """The core, its registers, and the names that tools and engineers expect.

    One clock, `aclk`, and a synchronous active-low reset, `aresetn`: while it is low, no port is
    ready or valid.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    aclk, aresetn : In(1)
        Clock and reset.
    s_axis_weight_tvalid, s_axis_weight_tready, s_axis_weight_tdata, s_axis_weight_tlast
        Packets of the hardware image, a bus word a transfer.
    s_axis_act_tvalid, s_axis_act_tready, s_axis_act_tdata, s_axis_act_tlast
        Activations, a column of every vector of the batch a transfer.
    m_axis_out_tvalid, m_axis_out_tready, m_axis_out_tdata, m_axis_out_tlast, m_axis_out_tuser
        Results, 32 bits a transfer; `tuser` marks an error.
    s_axil_*
        Registers, see `egret_hw.axi_lite.axi_lite_ports` and `egret_hw.registers`.
    matrix_done : Out(1)
        High for a cycle for every matrix that has ended without error.
    irq : Out(1)
        High while the core is stopped by an error, unless masked.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                "s_axis_weight_tvalid": In(1),
                "s_axis_weight_tready": Out(1),
                "s_axis_weight_tdata": In(params.bus_bits),
                "s_axis_weight_tlast": In(1),
                "s_axis_act_tvalid": In(1),
                "s_axis_act_tready": Out(1),
                "s_axis_act_tdata": In(params.activation_bus_bits),
                "s_axis_act_tlast": In(1),
                "m_axis_out_tvalid": Out(1),
                "m_axis_out_tready": In(1),
                "m_axis_out_tdata": Out(RESULT_BITS),
                "m_axis_out_tlast": Out(1),
                "m_axis_out_tuser": Out(1),
                **{_REGISTERS_PREFIX + name: port for name, port in axi_lite_ports().items()},
                "matrix_done": Out(1),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.domains.sync = ClockDomain()
        m.submodules.core = core = Accelerator(self.params)
        m.submodules.registers = registers = AxiLiteSlave(self.params)
        m.d.comb += [
            ClockSignal().eq(self.aclk),
            ResetSignal().eq(~self.aresetn),
            core.weights.valid.eq(self.s_axis_weight_tvalid),
            core.weights.payload.data.eq(self.s_axis_weight_tdata),
            core.weights.payload.last.eq(self.s_axis_weight_tlast),
            self.s_axis_weight_tready.eq(core.weights.ready & self.aresetn),
            core.activations.valid.eq(self.s_axis_act_tvalid),
            core.activations.payload.data.eq(self.s_axis_act_tdata),
            core.activations.payload.last.eq(self.s_axis_act_tlast),
            self.s_axis_act_tready.eq(core.activations.ready & self.aresetn),
            self.m_axis_out_tvalid.eq(core.results.valid & self.aresetn),
            self.m_axis_out_tdata.eq(core.results.payload.data),
            self.m_axis_out_tlast.eq(core.results.payload.last),
            self.m_axis_out_tuser.eq(core.results.payload.user),
            core.results.ready.eq(self.m_axis_out_tready),
            core.clear.eq(registers.pulses.control_reset),
            self.matrix_done.eq(core.matrix_done),
        ]
        for name, port in axi_lite_ports().items():
            outside, inside = getattr(self, _REGISTERS_PREFIX + name), getattr(registers, name)
            m.d.comb += inside.eq(outside) if port.flow is In else outside.eq(inside)

        stopped = core.status.error != ErrorKind.NONE
        status = {
            "status_error": stopped,
            "status_weight_tvalid": self.s_axis_weight_tvalid,
            "status_weight_tready": self.s_axis_weight_tready,
            "status_act_tvalid": self.s_axis_act_tvalid,
            "status_act_tready": self.s_axis_act_tready,
            "status_out_tvalid": self.m_axis_out_tvalid,
            "status_out_tready": self.m_axis_out_tready,
        }
        for name in registers.live.shape().members:
            source = status[name] if name in status else core.status[name]
            m.d.comb += registers.live[name].eq(source)
        m.d.sync += self.irq.eq(stopped & ~registers.held.control_mask_irq)
        return m
