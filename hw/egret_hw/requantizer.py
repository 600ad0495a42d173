"""Requantiser: adds the bias, scales by an integer multiply and shift, rounds and saturates."""

from itertools import pairwise

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import ENTRY_BITS
from egret.params import (
    ACTIVATION_BITS,
    BIAS_BITS,
    MULTIPLIER_BITS,
    RESULT_BITS,
    SHIFT_BITS,
    AcceleratorParams,
)
from egret_hw.readout import row_layout
from egret_hw.word_memory import WordMemory

__all__ = ["Requantizer", "result_layout"]

_PRODUCT_BITS = RESULT_BITS + MULTIPLIER_BITS + 1


def result_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a result.

    Returns
    -------
    data.StructLayout
        `row`, output row; `vector`, number in the batch; `result`, accumulator plus bias, int32;
        `activation`, int8.
    """
    return data.StructLayout(
        {
            "row": (params.row_depth - 1).bit_length(),
            "vector": max(1, (params.batch - 1).bit_length()),
            "result": signed(RESULT_BITS),
            "activation": signed(ACTIVATION_BITS),
        }
    )


class Requantizer(wiring.Component):
    """Finish a row: find its number, add its bias, requantise (docs/format.md, "Arithmetic").

    Latency 10 enabled cycles, throughput 1 vector of a row an enabled cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    enable : In(1)
        Advance.
    has_bias, relu, multiplier, shift
        Descriptor fields.
    rows_write, bias_write : In(1)
        Write `word` into the rows table or the biases at `word_address`.
    word_address, word
        The write.
    i : In(stream of row_layout)
        Rows with their sums.
    o_valid : Out(1)
        A result is there; it is taken when `enable` is high.
    o : Out(result_layout)
        The result.
    busy : Out(1)
        A row is inside.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        entries = params.row_slots * params.substreams
        words = max(
            entries * ENTRY_BITS // params.bus_bits, params.row_depth * BIAS_BITS // params.bus_bits
        )
        super().__init__(
            {
                "enable": In(1),
                "has_bias": In(1),
                "relu": In(1),
                "multiplier": In(MULTIPLIER_BITS),
                "shift": In(SHIFT_BITS),
                "rows_write": In(1),
                "bias_write": In(1),
                "word_address": In((words - 1).bit_length()),
                "word": In(params.bus_bits),
                "i": In(stream.Signature(row_layout(params))),
                "o_valid": Out(1),
                "o": Out(result_layout(params)),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        layout = result_layout(params)
        m.submodules.rows = rows = WordMemory(
            params.bus_bits, ENTRY_BITS, params.row_slots * params.substreams
        )
        m.submodules.biases = biases = WordMemory(params.bus_bits, BIAS_BITS, params.row_depth)
        for memory, strobe in ((rows, self.rows_write), (biases, self.bias_write)):
            m.d.comb += [
                memory.write.eq(strobe),
                memory.word_address.eq(self.word_address),
                memory.word.eq(self.word),
                memory.enable.eq(self.enable),
            ]

        # One vector of the row enters a cycle. Stages 0 and 1 read the rows table, 2 and 3 the
        # bias; the sum waits beside them.
        vector = Signal(layout["vector"].shape)
        last_vector = vector == params.batch - 1
        sums = Array(self.i.payload.sums[index] for index in range(params.batch))
        stages = 10
        valid = Signal(stages)
        vectors = [Signal(vector.shape(), name=f"vector_{stage}") for stage in range(stages - 1)]
        row_numbers = [
            Signal(layout["row"].shape, name=f"row_{stage}") for stage in range(2, stages - 1)
        ]
        waiting = [
            Signal(signed(params.accumulator_bits), name=f"sum_{stage}") for stage in range(4)
        ]
        m.d.comb += [
            self.i.ready.eq(self.enable & last_vector),
            rows.address.eq(self.i.payload.entry),
            biases.address.eq(rows.entry),
        ]
        result = Signal(signed(RESULT_BITS))
        multiplicand = Signal(signed(RESULT_BITS))
        product = Signal(signed(_PRODUCT_BITS))
        shift = Signal(SHIFT_BITS)
        half = Signal(_PRODUCT_BITS - 1)
        rounded = Signal(signed(_PRODUCT_BITS + 1))
        shifted = Signal(signed(_PRODUCT_BITS + 1))
        results = [Signal(signed(RESULT_BITS), name=f"result_{stage}") for stage in range(5, 9)]
        limit = 1 << (ACTIVATION_BITS - 1)
        # From this shift on every product rounds to 0, so half never needs more bits.
        enough = _PRODUCT_BITS - 1
        m.d.sync += [
            shift.eq(Mux(self.shift > enough, enough, self.shift)),
            half.eq((1 << shift) >> 1),
        ]
        with m.If(self.enable):
            with m.If(self.i.valid):
                m.d.sync += vector.eq(Mux(last_vector, 0, vector + 1))
            m.d.sync += [
                valid.eq((valid << 1) | self.i.valid),
                vectors[0].eq(vector),
                waiting[0].eq(sums[vector]),
                row_numbers[0].eq(rows.entry),
                # Stage 4: accumulator plus bias.
                result.eq(waiting[3] + Mux(self.has_bias, biases.entry.as_signed(), 0)),
                # Stages 5 and 6: multiply, with a register before and behind the multiplier.
                multiplicand.eq(result),
                product.eq(multiplicand * self.multiplier),
                # Stages 7 and 8: round half up.
                rounded.eq(product + half),
                shifted.eq(rounded >> shift),
                results[0].eq(result),
                # Stage 9: saturate.
                self.o.row.eq(row_numbers[-1]),
                self.o.vector.eq(vectors[-1]),
                self.o.result.eq(results[-1]),
            ]
            for chain in (vectors, row_numbers, waiting, results):
                m.d.sync += [later.eq(earlier) for earlier, later in pairwise(chain)]
            with m.If(shifted < 0):
                m.d.sync += self.o.activation.eq(
                    Mux(self.relu, 0, Mux(shifted < -limit, -limit, shifted))
                )
            with m.Else():
                m.d.sync += self.o.activation.eq(Mux(shifted >= limit, limit - 1, shifted))
        m.d.comb += [self.o_valid.eq(valid[-1]), self.busy.eq(valid.any() | self.i.valid)]
        return m
