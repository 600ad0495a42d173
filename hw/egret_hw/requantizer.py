"""Requantiser: adds the bias, scales by an integer multiply and shift, rounds and saturates."""

from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from egret.params import ACTIVATION_BITS, BIAS_BITS, MULTIPLIER_BITS, RESULT_BITS, SHIFT_BITS

__all__ = ["Requantizer", "SerialRequantizer"]

_PRODUCT_BITS = RESULT_BITS + MULTIPLIER_BITS + 1
# From this shift on every product rounds to 0.
_ENOUGH = _PRODUCT_BITS - 1
_STAGES, _SERIAL_STAGES = 6, 5
# Bits that the serial one shifts by at once: the largest shift takes fewer cycles than a product.
_LEAP = 8
_PORTS = {
    "enable": In(1),
    "has_bias": In(1),
    "relu": In(1),
    "multiplier": In(MULTIPLIER_BITS),
    "shift": In(SHIFT_BITS),
    "i_valid": In(1),
    "i_sum": In(signed(RESULT_BITS)),
    "i_bias": In(signed(BIAS_BITS)),
    "o_valid": Out(1),
    "o_result": Out(signed(RESULT_BITS)),
    "o_activation": Out(signed(ACTIVATION_BITS)),
    "busy": Out(1),
}


def _saturate(m: Module, activation: Signal, value: Signal, relu: Value) -> None:
    """Keep the nearest int8, which is not below 0 where `relu`."""
    limit = 1 << (ACTIVATION_BITS - 1)
    with m.If(value < 0):
        m.d.sync += activation.eq(Mux(relu, 0, Mux(value < -limit, -limit, value)))
    with m.Else():
        m.d.sync += activation.eq(Mux(value >= limit, limit - 1, value))


class Requantizer(wiring.Component):
    """Turn a sum into a result and an activation (docs/format.md, "Arithmetic").

    Latency 6 enabled cycles, throughput 1 sum an enabled cycle.

    Attributes
    ----------
    enable : In(1)
        Advance.
    has_bias, relu, multiplier, shift
        Header fields, constant while a matrix's sums are inside.
    i_valid : In(1)
        A sum is there.
    i_sum, i_bias : In(signed(32))
        The sum and its bias, which counts where `has_bias`.
    o_valid : Out(1)
        A result is there.
    o_result : Out(signed(32))
        Sum plus bias.
    o_activation : Out(signed(8))
        Requantised result.
    busy : Out(1)
        A sum is inside.
    """

    def __init__(self) -> None:
        super().__init__(_PORTS)

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        valid = Signal(_STAGES)
        result = Signal(signed(RESULT_BITS))
        multiplicand = Signal(signed(RESULT_BITS))
        product = Signal(signed(_PRODUCT_BITS))
        shift = Signal(SHIFT_BITS)
        half = Signal(_PRODUCT_BITS - 1)
        rounded = Signal(signed(_PRODUCT_BITS + 1))
        shifted = Signal(signed(_PRODUCT_BITS + 1))
        results = [Signal(signed(RESULT_BITS), name=f"result_{stage}") for stage in range(1, 5)]
        m.d.sync += [
            # So that half never needs more bits.
            shift.eq(Mux(self.shift > _ENOUGH, _ENOUGH, self.shift)),
            half.eq((1 << shift) >> 1),
        ]
        with m.If(self.enable):
            m.d.sync += [
                valid.eq((valid << 1) | self.i_valid),
                # Stage 0: accumulator plus bias.
                result.eq(self.i_sum + Mux(self.has_bias, self.i_bias, 0)),
                # Stages 1 and 2: multiply, with a register before and behind the multiplier.
                multiplicand.eq(result),
                product.eq(multiplicand * self.multiplier),
                # Stages 3 and 4: round half up.
                rounded.eq(product + half),
                shifted.eq(rounded >> shift),
                results[0].eq(result),
                # Stage 5: saturate.
                self.o_result.eq(results[-1]),
            ]
            m.d.sync += [later.eq(earlier) for earlier, later in pairwise(results)]
            _saturate(m, self.o_activation, shifted, self.relu)
        m.d.comb += [self.o_valid.eq(valid[-1]), self.busy.eq(valid.any())]
        return m


class SerialRequantizer(wiring.Component):
    """Do what `Requantizer` does in few LUTs, for parts without multipliers.

    It multiplies a bit, and shifts by 8 or by 1, in the cycles between two enabled ones. Latency 5
    enabled cycles; throughput 1 sum an enabled cycle, of which there may be one in 17 cycles
    (`AcceleratorParams.requantizer_cycles`).

    Attributes
    ----------
    ready : Out(1)
        It may be enabled.
    restart : In(1)
        Be ready in the next cycle; only while nothing is inside.
    enable, has_bias, relu, multiplier, shift, i_valid, i_sum, i_bias, o_valid, o_result, \
o_activation, busy
        As in `Requantizer`; `enable` only while `ready`.
    """

    def __init__(self) -> None:
        super().__init__({**_PORTS, "ready": Out(1), "restart": In(1)})

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        valid = Signal(_SERIAL_STAGES)
        # One sum each: before the multiplier, in it, in the shifter, and behind it.
        results = [Signal(signed(RESULT_BITS), name=f"result_{stage}") for stage in range(4)]
        left = Signal(range(MULTIPLIER_BITS + 1))
        # The upper part of the product; below it those of its bits that are final, and behind
        # them what is left of the multiplier.
        product = Signal(signed(RESULT_BITS + MULTIPLIER_BITS))
        upper = product[MULTIPLIER_BITS:].as_signed()
        # With the bit that was shifted out last below it, which rounds.
        shifted = Signal(signed(RESULT_BITS + MULTIPLIER_BITS + 1))
        rounded = Signal(signed(RESULT_BITS + MULTIPLIER_BITS + 1))
        shift = Signal(SHIFT_BITS)
        m.d.comb += [
            self.ready.eq(left == 0),
            self.o_valid.eq(valid[-1]),
            self.busy.eq(valid.any()),
        ]
        with m.If(self.enable):
            m.d.sync += [
                valid.eq((valid << 1) | self.i_valid),
                results[0].eq(self.i_sum + Mux(self.has_bias, self.i_bias, 0)),
                left.eq(MULTIPLIER_BITS),
                product.eq(self.multiplier),
                shifted.eq(product << 1),
                shift.eq(Mux(self.shift > _ENOUGH, _ENOUGH, self.shift)),
                rounded.eq((shifted >> 1) + shifted[0]),
                self.o_result.eq(results[-1]),
            ]
            m.d.sync += [later.eq(earlier) for earlier, later in pairwise(results)]
            _saturate(m, self.o_activation, rounded, self.relu)
        with m.Elif(left != 0):
            total = upper + Mux(product[0], results[1], 0)
            m.d.sync += [left.eq(left - 1), product.eq(Cat(product[1:MULTIPLIER_BITS], total))]
            with m.If(shift >= _LEAP):
                m.d.sync += [shift.eq(shift - _LEAP), shifted.eq(shifted >> _LEAP)]
            with m.Elif(shift != 0):
                m.d.sync += [shift.eq(shift - 1), shifted.eq(shifted >> 1)]
        with m.If(self.restart):
            m.d.sync += left.eq(0)
        return m
