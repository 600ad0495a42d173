"""Block RAM and multiplier with the registers that they need to be fast."""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from egret_hw.table_memory import table_memory

__all__ = ["BlockRam", "Multiplier"]


class BlockRam(wiring.Component):
    """Memory with a register behind it.

    Latency 2 enabled cycles from `address` to `value`, throughput 1 read an enabled cycle. What is
    read in a cycle in which it is written is undefined.

    Parameters
    ----------
    width : int
        Bits of an entry.
    depth : int
        Entries.
    granularity : int
        Bits that are written or not by themselves; a divisor of `width`.
    together : int
        Entries that one write reaches; a power of two.

    Attributes
    ----------
    write_enable : In(together * width // granularity)
        Parts to write.
    write_address, write_value : In
        Where, in units of `together` entries, and what, the lowest entry in the lowest bits.
    enable : In(1)
        Advance the reading.
    address : In
        Entry to read.
    value : Out(width)
        The entry.
    """

    def __init__(self, width: int, depth: int, granularity: int, together: int = 1) -> None:
        self._width = width
        self._depth = depth
        self._granularity = granularity
        self._together = together
        address_bits = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "write_enable": In(together * width // granularity),
                "write_address": In(max(1, (depth // together - 1).bit_length())),
                "write_value": In(together * width),
                "enable": In(1),
                "address": In(address_bits),
                "value": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.entries = entries = table_memory(self._width, self._depth)
        whole = self._granularity == self._width
        # Ports whose addresses differ in constant low bits are one wide port of a block RAM.
        low_bits = (self._together - 1).bit_length()
        for entry in range(self._together):
            write = entries.write_port(granularity=None if whole else self._granularity)
            m.d.comb += [
                write.en.eq(self.write_enable.word_select(entry, len(write.en))),
                write.addr.eq(Cat(Const(entry, low_bits), self.write_address)),
                write.data.eq(self.write_value.word_select(entry, self._width)),
            ]
        read = entries.read_port()
        m.d.comb += [
            read.en.eq(self.enable),
            read.addr.eq(self.address),
        ]
        value = Signal(self._width, reset_less=True)
        with m.If(self.enable):
            m.d.sync += value.eq(read.data)
        m.d.comb += self.value.eq(value)
        return m


class Multiplier(wiring.Component):
    """Signed multiplier with registers before and behind it.

    Latency 2 enabled cycles, throughput 1 product an enabled cycle.

    Parameters
    ----------
    a_bits, b_bits : int
        Widths of the factors.

    Attributes
    ----------
    enable : In(1)
        Advance.
    a, b : In(signed)
        Factors.
    product : Out(signed(a_bits + b_bits))
        Product.
    """

    def __init__(self, a_bits: int, b_bits: int) -> None:
        self._a_bits = a_bits
        self._b_bits = b_bits
        super().__init__(
            {
                "enable": In(1),
                "a": In(signed(a_bits)),
                "b": In(signed(b_bits)),
                "product": Out(signed(a_bits + b_bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        a = Signal(signed(self._a_bits), reset_less=True)
        b = Signal(signed(self._b_bits), reset_less=True)
        product = Signal(signed(self._a_bits + self._b_bits), reset_less=True)
        with m.If(self.enable):
            m.d.sync += [a.eq(self.a), b.eq(self.b), product.eq(a * b)]
        m.d.comb += self.product.eq(product)
        return m
