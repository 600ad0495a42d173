"""MAC: maps indices to weights, multiplies and accumulates."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import ACTIVATION_BITS, AcceleratorParams
from egret_hw.layouts import (
    block_slot_bits,
    lane_result_layout,
    map_write_layout,
    vector_write_layout,
)
from egret_hw.positioner import INDEX_BITS, lane_settings_layout, operation_layout
from egret_hw.primitives import BlockRam, Multiplier

__all__ = ["Mac"]

_RAM_STAGES = 2
_MULTIPLIER_STAGES = 2


class Mac(wiring.Component):
    """Value map, activations, multipliers and accumulators of a lane.

    Latency 7 enabled cycles from an operation to the sum that it emits; throughput 1 operation an
    enabled cycle. A sum waits in a register until it is taken; the next one then holds up
    everything, for one cycle also when it comes directly behind one that is taken at once.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    enable : Out(1)
        Everything advances, the operation is taken.
    settings : In(lane_settings_layout)
        See `Positioner`.
    map_write : In(map_write_layout)
        Writes the value map.
    vector_write : In(vector_write_layout)
        Writes activations.
    i : In(operation_layout)
        What to do.
    o : Out(stream of lane_result_layout)
        Sums.
    multiply : Out(1)
        A weight that is not 0 by its form was multiplied.
    bad : Out(1)
        An index lay beyond the map, in the substream of `bad_slot` and `bad_parity`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        super().__init__(
            {
                "enable": Out(1),
                "settings": In(lane_settings_layout(params)),
                "map_write": In(map_write_layout(params)),
                "vector_write": In(vector_write_layout(params)),
                "i": In(operation_layout(params)),
                "o": Out(stream.Signature(lane_result_layout(params))),
                "multiply": Out(1),
                "bad": Out(1),
                "bad_slot": Out(block_slot_bits(params)),
                "bad_parity": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        enable = self.enable
        m.submodules.map = value_map = BlockRam(
            params.weight_bits, params.map_depth, params.weight_bits
        )
        m.submodules.vectors = vectors = BlockRam(
            ACTIVATION_BITS * params.batch,
            2 * params.activation_depth,
            ACTIVATION_BITS,
            together=params.activation_columns,
        )
        m.d.comb += [
            value_map.write_enable.eq(self.map_write.enable),
            value_map.write_address.eq(self.map_write.address),
            value_map.write_value.eq(self.map_write.value[: params.weight_bits]),
            value_map.enable.eq(enable),
            vectors.write_enable.eq(self.vector_write.enable),
            vectors.write_address.eq(Cat(self.vector_write.address, self.vector_write.memory)),
            vectors.write_value.eq(self.vector_write.activations),
            vectors.enable.eq(enable),
        ]

        # Settings follow the operations.
        held = Signal(lane_settings_layout(params), reset_less=True)
        with m.If(enable & self.i.load):
            m.d.sync += held.eq(self.settings)

        # Address: where the weight and its activation lie, and whether there is such a weight.
        tag_layout = data.StructLayout(
            {
                "multiply": 1,
                "emit": 1,
                "last": 1,
                "parity": 1,
                "slot": (params.slots - 1).bit_length(),
            }
        )
        stages = 1 + _RAM_STAGES + _MULTIPLIER_STAGES
        tags = [Signal(tag_layout, name=f"tag_{stage}") for stage in range(stages)]
        number = Signal(INDEX_BITS, reset_less=True)
        beyond = Signal(INDEX_BITS + 1, reset_less=True)
        column = Signal.like(self.i.column, reset_less=True)
        memory = Signal(reset_less=True)
        used = Signal()
        m.d.comb += used.eq(tags[0].multiply & beyond[-1])
        with m.If(enable):
            m.d.sync += [
                tags[0].multiply.eq(self.i.multiply),
                tags[0].emit.eq(self.i.emit),
                tags[0].last.eq(self.i.last),
                tags[0].parity.eq(self.i.parity),
                tags[0].slot.eq(self.i.slot),
                number.eq(self.i.index + held.base),
                beyond.eq(self.i.index - held.limit),
                column.eq(self.i.column),
                memory.eq(held.memory),
            ]
            m.d.sync += [later.eq(earlier) for earlier, later in pairwise(tags)]
            m.d.sync += tags[1].multiply.eq(used)
        m.d.sync += [
            self.multiply.eq(enable & used),
            self.bad.eq(enable & tags[0].multiply & ~beyond[-1] & beyond[:-1].any()),
            self.bad_slot.eq(tags[0].slot),
            self.bad_parity.eq(tags[0].parity),
        ]
        m.d.comb += [value_map.address.eq(number), vectors.address.eq(Cat(column, memory))]

        # Factors: out of the map, or the number's zigzag.
        zigzags = [Signal(name=f"zigzag_{stage}") for stage in range(1 + _RAM_STAGES)]
        numbers = [number]
        for stage in range(_RAM_STAGES):
            following = Signal(INDEX_BITS, name=f"number_{stage}", reset_less=True)
            with m.If(enable):
                m.d.sync += following.eq(numbers[-1])
            numbers.append(following)
        with m.If(enable):
            m.d.sync += zigzags[0].eq(held.zigzag)
            m.d.sync += [later.eq(earlier) for earlier, later in pairwise(zigzags)]
        # What is not to be multiplied becomes the zigzag number 0, so that its product is 0.
        multiplies = tags[_RAM_STAGES - 1].multiply
        with m.If(enable & ~multiplies):
            m.d.sync += [numbers[-1].eq(0), zigzags[-1].eq(1)]
        folded = Cat(numbers[-1][1:] ^ numbers[-1][0].replicate(INDEX_BITS - 1), numbers[-1][0])
        weight = Signal(signed(params.weight_bits))
        m.d.comb += weight.eq(Mux(zigzags[-1], folded.as_signed(), value_map.value))

        # Sums. The one at work is at hand; where an operation is another slot's, it goes to those
        # that rest. The choice lies before the adder, in whose LUTs there is room for it.
        ends = tags[-1]
        turns = Signal()
        left = Signal((params.slots - 1).bit_length())
        if params.slots > 1:
            with m.If(enable):
                m.d.sync += [turns.eq(tags[-2].slot != ends.slot), left.eq(ends.slot)]
        done = Signal(lane_result_layout(params))
        full = Signal()
        totals = Signal(done.sums.shape())
        for vector in range(params.batch):
            multiplier = Multiplier(params.weight_bits, ACTIVATION_BITS)
            m.submodules[f"multiplier_{vector}"] = multiplier
            m.d.comb += [
                multiplier.enable.eq(enable),
                multiplier.a.eq(weight),
                multiplier.b.eq(vectors.value.word_select(vector, ACTIVATION_BITS)),
            ]
            held_sum = Signal(signed(params.accumulator_bits), name=f"sum_{vector}")
            resting = [
                Signal.like(held_sum, name=f"resting_{vector}_{number}")
                for number in range(params.slots if params.slots > 2 else params.slots - 1)
            ]
            before: Value = held_sum
            if resting:
                rested = Array(resting)[ends.slot if params.slots > 2 else 0]
                before = Mux(turns, rested, held_sum).as_signed()
            total = Signal.like(held_sum, name=f"total_{vector}")
            # The product of what only emits is 0.
            m.d.comb += [total.eq(before + multiplier.product), totals[vector].eq(total)]
            # Not in any other cycle: a reset leaves the multiplier as it was.
            with m.If(enable & (ends.multiply | ends.emit | turns)):
                m.d.sync += held_sum.eq(total)
            with m.If(enable & ends.emit):
                m.d.sync += held_sum.eq(0)
            for number, rest in enumerate(resting):
                with m.If(enable & turns & (left == number if params.slots > 2 else 1)):
                    m.d.sync += rest.eq(held_sum)
        # The enable has a long way to go and so comes from a register: it is known one cycle ahead
        # whether there will be a sum to send while another one waits. It falls only in that case.
        running = Signal(init=1)
        held_up = tags[-2].emit & (ends.emit | (full & ~self.o.ready))
        m.d.sync += running.eq(Mux(running, ~held_up, self.o.ready))
        m.d.comb += [
            enable.eq(running),
            self.o.valid.eq(full),
            self.o.payload.eq(done),
        ]
        with m.If(enable & ends.emit):
            m.d.sync += [
                full.eq(1),
                done.sums.eq(totals),
                done.slot.eq(ends.slot),
                done.last.eq(ends.last),
                done.parity.eq(ends.parity),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += full.eq(0)
        return m
