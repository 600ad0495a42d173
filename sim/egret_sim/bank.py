"""Bank: several components side by side in one design, so that benches build one model."""

from collections.abc import Mapping

from amaranth.hdl import Module, ResetInserter
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from egret_hw.rtl import component_verilog

__all__ = ["Bank", "bank_verilog"]


class Bank(wiring.Component):
    """Independent components whose ports are all reached from the top.

    Most of the time that a Verilated model takes to build does not depend on the design, and in
    one simulation all members run at once.

    Parameters
    ----------
    members : Mapping[str, wiring.Component]
        Components by name. Port `p` of member `n` becomes `n__p`.

    Attributes
    ----------
    n_reset : In(1)
        Of each member `n`: its reset alone.
    """

    def __init__(self, members: Mapping[str, wiring.Component]) -> None:
        self._members = dict(members)
        ports = {name: Out(member.signature) for name, member in self._members.items()}
        super().__init__({**ports, **{f"{name}_reset": In(1) for name in self._members}})

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        for name, member in self._members.items():
            m.submodules[name] = ResetInserter(getattr(self, f"{name}_reset"))(member)
            wiring.connect(m, member, wiring.flipped(getattr(self, name)))
        return m


def bank_verilog(members: Mapping[str, wiring.Component], name: str) -> str:
    """Return the Verilog of a bank whose top module is `name`; clock `clk`, reset `rst`."""
    return component_verilog(Bank(members), name)
