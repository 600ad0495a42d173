"""Block RAM and multiplier with the registers that they need to be fast."""

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

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
        Bits that are written together; a divisor of `width`.

    Attributes
    ----------
    write_enable : In(width // granularity)
        Parts to write.
    write_address, write_value : In
        Where and what.
    enable : In(1)
        Advance the reading.
    address : In
        Entry to read.
    value : Out(width)
        The entry.
    """

    def __init__(self, width: int, depth: int, granularity: int) -> None:
        self._width = width
        self._depth = depth
        self._granularity = granularity
        address_bits = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "write_enable": In(width // granularity),
                "write_address": In(address_bits),
                "write_value": In(width),
                "enable": In(1),
                "address": In(address_bits),
                "value": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.entries = entries = memory.Memory(
            shape=self._width, depth=self._depth, init=[]
        )
        whole = self._granularity == self._width
        write = entries.write_port(granularity=None if whole else self._granularity)
        read = entries.read_port()
        m.d.comb += [
            write.en.eq(self.write_enable),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_value),
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
