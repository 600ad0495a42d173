"""Requantiser: adds the bias, scales by an integer multiply and shift, rounds and saturates."""

from itertools import pairwise

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from egret.params import ACTIVATION_BITS, BIAS_BITS, MULTIPLIER_BITS, RESULT_BITS, SHIFT_BITS

__all__ = ["Requantizer"]

_PRODUCT_BITS = RESULT_BITS + MULTIPLIER_BITS + 1


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
        super().__init__(
            {
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
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        stages = 6
        valid = Signal(stages)
        result = Signal(signed(RESULT_BITS))
        multiplicand = Signal(signed(RESULT_BITS))
        product = Signal(signed(_PRODUCT_BITS))
        shift = Signal(SHIFT_BITS)
        half = Signal(_PRODUCT_BITS - 1)
        rounded = Signal(signed(_PRODUCT_BITS + 1))
        shifted = Signal(signed(_PRODUCT_BITS + 1))
        results = [Signal(signed(RESULT_BITS), name=f"result_{stage}") for stage in range(1, 5)]
        limit = 1 << (ACTIVATION_BITS - 1)
        # From this shift on every product rounds to 0, so half never needs more bits.
        enough = _PRODUCT_BITS - 1
        m.d.sync += [
            shift.eq(Mux(self.shift > enough, enough, self.shift)),
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
            with m.If(shifted < 0):
                m.d.sync += self.o_activation.eq(
                    Mux(self.relu, 0, Mux(shifted < -limit, -limit, shifted))
                )
            with m.Else():
                m.d.sync += self.o_activation.eq(Mux(shifted >= limit, limit - 1, shifted))
        m.d.comb += [self.o_valid.eq(valid[-1]), self.busy.eq(valid.any())]
        return m
