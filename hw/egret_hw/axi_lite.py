"""AXI4-Lite slave: a bus's reads and writes of the register map."""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Const, Module, Mux, ResetSignal, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from egret.params import AcceleratorParams
from egret_hw.registers import ADDRESS_BITS, REGISTER_BITS, REGISTERS, Kind, Register

__all__ = ["OKAY", "SLVERR", "AxiLiteSlave", "axi_lite_ports"]

OKAY = 0b00
SLVERR = 0b10
"""The answer to an address without a register, and to a write where nothing can be written."""

_BYTES = REGISTER_BITS // 8
_BLOCK_BYTES = 64
"""Registers of a block are read together."""


def axi_lite_ports() -> dict[str, wiring.Member]:
    """Return a slave's ports by the names of the AXI4-Lite specification, without a prefix."""
    return {
        "awvalid": In(1),
        "awready": Out(1),
        "awaddr": In(ADDRESS_BITS),
        "awprot": In(3),
        "wvalid": In(1),
        "wready": Out(1),
        "wdata": In(REGISTER_BITS),
        "wstrb": In(_BYTES),
        "bvalid": Out(1),
        "bready": In(1),
        "bresp": Out(2),
        "arvalid": In(1),
        "arready": Out(1),
        "araddr": In(ADDRESS_BITS),
        "arprot": In(3),
        "rvalid": Out(1),
        "rready": In(1),
        "rdata": Out(REGISTER_BITS),
        "rresp": Out(2),
    }


class AxiLiteSlave(wiring.Component):
    """Answers AXI4-Lite transfers from a table of registers.

    Reads and writes are independent of each other. Address and data of a write may come in any
    order and with any delay. Three cycles after the last of them was taken comes the response. It
    stays until it is taken, and then the next transfer is: one in four cycles at best. No path
    leads from an input to an output, but for the reset: while it is given, nothing is ready or
    valid.

    Byte strobes are obeyed; the low two bits of addresses and the protection bits are ignored. An
    address without a register is answered with SLVERR, and read as 0; so is a write to a register
    in which nothing can be written.

    Parameters
    ----------
    params : AcceleratorParams
        Gives the constants' values.
    registers : sequence of Register
        The table.

    Attributes
    ----------
    awvalid, awready, awaddr, awprot, wvalid, wready, wdata, wstrb, bvalid, bready, bresp, \
arvalid, arready, araddr, arprot, rvalid, rready, rdata, rresp
        The bus, see `axi_lite_ports`.
    live : In(StructLayout)
        Values of the live fields, by their signal names.
    held : Out(StructLayout)
        Fields that were written, likewise.
    pulses : Out(StructLayout)
        Fields of kind PULSE, likewise: 1 for a cycle after a one was written.
    """

    def __init__(
        self, params: AcceleratorParams, registers: Sequence[Register] = REGISTERS
    ) -> None:
        self._params = params
        self._registers = tuple(registers)

        def layout(kind: Kind) -> data.StructLayout:
            return data.StructLayout(
                {
                    register.signal_name(field): field.width
                    for register in self._registers
                    for field in register.fields
                    if field.kind is kind
                }
            )

        super().__init__(
            {
                **axi_lite_ports(),
                "live": In(layout(Kind.LIVE)),
                "held": Out(layout(Kind.HELD)),
                "pulses": Out(layout(Kind.PULSE)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        self._add_writes(m)
        self._add_reads(m)
        return m

    def _add_writes(self, m: Module) -> None:
        address = Signal(ADDRESS_BITS - 2)
        word = Signal(REGISTER_BITS)
        strobes = Signal(_BYTES)
        address_held, word_held = Signal(), Signal()
        writable = [register for register in self._registers if register.writable]
        selected = Signal(len(writable))
        with m.If(self.awvalid & self.awready):
            m.d.sync += [address.eq(self.awaddr[2:]), address_held.eq(1)]
        with m.If(self.wvalid & self.wready):
            m.d.sync += [word.eq(self.wdata), strobes.eq(self.wstrb), word_held.eq(1)]
        m.d.comb += [
            self.awready.eq(~address_held & ~ResetSignal()),
            self.wready.eq(~word_held & ~ResetSignal()),
        ]
        m.d.sync += [
            selected.eq(Cat(address == register.offset >> 2 for register in writable)),
            self.pulses.eq(0),
        ]
        with m.FSM(name="write"):
            with m.State("COLLECT"), m.If(address_held & word_held):
                m.next = "WRITE"
            with m.State("WRITE"):
                m.d.sync += self.bresp.eq(Mux(selected.any(), OKAY, SLVERR))
                for register, chosen in zip(writable, selected, strict=True):
                    with m.If(chosen):
                        self._write(m, register, word, strobes)
                m.next = "RESPOND"
            with m.State("RESPOND"):
                m.d.comb += self.bvalid.eq(~ResetSignal())
                with m.If(self.bready):
                    m.d.sync += [address_held.eq(0), word_held.eq(0)]
                    m.next = "COLLECT"

    def _write(self, m: Module, register: Register, word: Signal, strobes: Signal) -> None:
        mask = Cat(strobe.replicate(8) for strobe in strobes)
        for field in register.fields:
            name = register.signal_name(field)
            bits = slice(field.lsb, field.lsb + field.width)
            if field.kind is Kind.PULSE:
                m.d.sync += self.pulses[name].eq(word[bits] & mask[bits])
            elif field.kind is Kind.HELD:
                held = self.held[name]
                m.d.sync += held.eq((held & ~mask[bits]) | (word[bits] & mask[bits]))

    def _add_reads(self, m: Module) -> None:
        address = Signal(ADDRESS_BITS - 2)
        with m.FSM(name="read") as fsm:
            with m.State("ACCEPT"):
                m.d.comb += self.arready.eq(~ResetSignal())
                m.d.sync += address.eq(self.araddr[2:])
                with m.If(self.arvalid):
                    m.next = "SELECT"
            with m.State("SELECT"):
                m.next = "JOIN"
            with m.State("JOIN"):
                m.next = "RESPOND"
            with m.State("RESPOND"):
                m.d.comb += self.rvalid.eq(~ResetSignal())
                with m.If(self.rready):
                    m.next = "ACCEPT"
        # In two steps, each of a few gates: first the word of each block, which repeats where the
        # block has fewer registers, then the word of the block that is hit.
        words, hits = [], []
        for block in sorted({register.offset // _BLOCK_BYTES for register in self._registers}):
            members = {
                register.offset % _BLOCK_BYTES // _BYTES: self._read(m, register)
                for register in self._registers
                if register.offset // _BLOCK_BYTES == block
            }
            place_bits = max(members).bit_length()
            places = range(1 << place_bits)
            choice = Array(members.get(place, Const(0, REGISTER_BITS)) for place in places)
            first = block * _BLOCK_BYTES // _BYTES
            word = Signal(REGISTER_BITS, name=f"block_{block}_word")
            hit = Signal(name=f"block_{block}_hit")
            m.d.sync += [
                word.eq(choice[address[:place_bits]]),
                hit.eq(Cat(address == first + place for place in members).any()),
            ]
            words.append(word & hit.replicate(REGISTER_BITS))
            hits.append(hit)
        with m.If(fsm.ongoing("JOIN")):
            m.d.sync += [
                self.rdata.eq(reduce(or_, words)),
                self.rresp.eq(Mux(Cat(hits).any(), OKAY, SLVERR)),
            ]

    def _read(self, m: Module, register: Register) -> Signal:
        """Return a register as a read sees it."""
        word = Signal(REGISTER_BITS, name=f"{register.name.lower()}_word")
        for field in register.fields:
            bits = word[field.lsb : field.lsb + field.width]
            name = register.signal_name(field)
            if field.value is not None:
                m.d.comb += bits.eq(field.value(self._params))
            elif field.kind is not Kind.PULSE:
                m.d.comb += bits.eq((self.live if field.kind is Kind.LIVE else self.held)[name])
        return word
