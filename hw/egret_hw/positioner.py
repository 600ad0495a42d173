"""Positioner: finds the place of every event in its row, and where rows end."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import CLASSES
from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.extractor import task_layout
from egret_hw.layouts import code_write_layout, position_bits, start_write_layout
from egret_hw.table_memory import table_memory

__all__ = ["INDEX_BITS", "Positioner", "lane_settings_layout", "operation_layout"]

INDEX_BITS = 12
"""Width of an index with its offset: one that a packer would not make shows as a large one."""


def lane_settings_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of the settings of the newest matrix, as the lanes' back ends take them.

    Returns
    -------
    data.StructLayout
        `columns`; `memory`, the activation memory; `zigzag`; `bank`, of the code tables;
        `run_offset`, without tables, what leads from a run's codeword to its length; `base`, what
        leads from an index (without tables, from its codeword as a number) to an entry of the map
        or a zigzag number; `limit`, the filler's index (or number).
    """
    runs = CODE_NAMES[1] in params.codes
    tables = CODE_NAMES[2] in params.codes
    return data.StructLayout(
        {
            "columns": params.activation_depth.bit_length(),
            "memory": 1,
            "zigzag": 1,
            "bank": 1,
            "run_offset": position_bits(params) if runs and not tables else 0,
            "base": INDEX_BITS,
            "limit": INDEX_BITS,
        }
    )


def operation_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of what the MAC is to do.

    Returns
    -------
    data.StructLayout
        `load`, the settings of the next matrix hold from here on; `multiply`, add the product
        of the weight of `index` and the activation at `column`; `emit`, send the sum and begin
        another one, `last`, the substream's last one; `slot`; `parity`.
    """
    return data.StructLayout(
        {
            "load": 1,
            "multiply": 1,
            "emit": 1,
            "last": 1,
            "index": INDEX_BITS,
            "column": (params.activation_depth - 1).bit_length(),
            "parity": 1,
            "slot": (params.slots - 1).bit_length(),
        }
    )


class Positioner(wiring.Component):
    """Keep every substream's position, and end its rows.

    A position is a column minus the number of columns, negative inside a row. A task adds the
    weights passed over; while the position is not negative, a row has ended: its sum is emitted,
    and the columns are taken back. So a row costs one cycle, and its weights that are 0 none.

    Behind a matrix's last task each substream's next position is loaded from its start, which
    must not be written again before the sums of that last task have left the lane.

    Latency 2 enabled cycles, throughput 1 operation an enabled cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    enable : In(1)
        Advance.
    settings : In(lane_settings_layout)
        Of the matrix whose starts have been written last.
    code_write : In(code_write_layout())
        Writes a table's entry. Entries behind a table's last class repeat the last one.
    start_write : In(start_write_layout)
        With `selected`, writes a slot's start; the slots' in order.
    go : In(2)
        The matrix with this parity may be worked on.
    i : In(stream of task_layout)
        Tasks.
    o : Out(operation_layout)
        What to do in this cycle, if enabled.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        super().__init__(
            {
                "enable": In(1),
                "settings": In(lane_settings_layout(params)),
                "code_write": In(code_write_layout()),
                "start_write": In(start_write_layout(params)),
                "selected": In(1),
                "go": In(2),
                "i": In(stream.Signature(task_layout(params))),
                "o": Out(operation_layout(params)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        slots = params.slots
        bits = position_bits(params)
        runs = CODE_NAMES[1] in params.codes
        tables = CODE_NAMES[2] in params.codes
        task = self.i.payload
        emitting = Signal()
        advance = Signal()

        # Starts wait until the matrix before is done. Behind them its tasks may come.
        # Up to two are a shift register, as they come and are loaded in order; of more some may be
        # written again while others are loaded.
        starts = [Signal(bits, name=f"start_{slot}", reset_less=True) for slot in range(slots)]
        placed = Signal()
        loading = Signal(init=1)
        load_slot = Signal((slots - 1).bit_length())
        load = Signal()
        opened = Signal()
        comes = Signal()
        last_slot = slots - 1
        written_slot = self.start_write.slot[: len(load_slot)]
        m.d.comb += [
            advance.eq(self.enable & ~emitting),
            load.eq(loading & placed),
            comes.eq(self.i.valid & opened),
            self.i.ready.eq(advance & opened),
        ]
        written = Signal()
        m.d.comb += written.eq(self.start_write.enable & self.selected)
        if slots > 2:
            with m.If(written):
                m.d.sync += Array(starts)[written_slot].eq(self.start_write.position)
        else:
            with m.If(written | (advance & load)):
                m.d.sync += [before.eq(behind) for before, behind in pairwise(starts)]
                m.d.sync += starts[-1].eq(self.start_write.position)
        with m.If(written & (written_slot == last_slot)):
            m.d.sync += placed.eq(1)
        with m.If(advance):
            # Not while held up: the settings move with the enable, and must be there before.
            with m.If(~loading & self.i.valid & self.go.bit_select(task.parity, 1)):
                m.d.sync += opened.eq(1)
            with m.If(load):
                m.d.sync += load_slot.eq(load_slot + 1)
                with m.If(load_slot == last_slot):
                    m.d.sync += [loading.eq(0), placed.eq(0)]
            with m.If(comes & task.flush & (task.slot == last_slot)):
                m.d.sync += [loading.eq(1), opened.eq(0)]

        # First stage: codewords become weights to skip, and indices.
        marks_layout = data.StructLayout(
            {"passes": 1, "event": 1, "flush": 1, "load": 1, "turns": int(slots > 1)}
        )
        tag_layout = data.StructLayout(
            {"index": INDEX_BITS, "parity": 1, "slot": (slots - 1).bit_length()}
        )
        marks = Signal(marks_layout)
        # After a reset no slot's turn comes before the first one is loaded.
        tag = Signal(tag_layout)
        step = Signal(bits, reset_less=True)
        start = Signal(bits, reset_less=True)
        slot = Signal((slots - 1).bit_length())
        m.d.comb += slot.eq(Mux(load, load_slot, task.slot))
        index = Signal(INDEX_BITS)
        length = Signal(bits)
        # The settings arrive one cycle behind the last start.
        settle = Signal()
        m.d.comb += settle.eq(marks.load & (tag.slot == 0))
        m.d.comb += [index.eq(task.number), length.eq(task.skip)]
        if tables:
            bank = Signal()
            with m.If(advance & settle):
                m.d.sync += bank.eq(self.settings.bank)
            offsets = {}
            for name, is_run in (("level", 0), ("run", 1))[: 1 + runs]:
                table = table_memory(INDEX_BITS, CLASSES * params.code_banks)
                m.submodules[f"{name}_offsets"] = table
                write, read = table.write_port(), table.read_port(domain="comb")
                entry = self.code_write
                m.d.comb += [
                    write.en.eq(entry.enable & (entry.run == is_run)),
                    write.addr.eq(Cat(entry.number, entry.bank)),
                    write.data.eq(entry.offset),
                    read.addr.eq(Cat(task[f"{name}_class"], bank)),
                ]
                offsets[name] = read.data
            m.d.comb += index.eq(task.number + offsets["level"])
            if runs:
                m.d.comb += length.eq(task.skip + offsets["run"].as_signed())
        elif runs:
            run_offset = Signal(bits, reset_less=True)
            with m.If(advance & settle):
                m.d.sync += run_offset.eq(self.settings.run_offset)
            m.d.comb += length.eq(task.skip + run_offset)
        with m.If(advance):
            m.d.sync += [
                marks.passes.eq(comes & ~task.flush),
                marks.event.eq(comes & task.event),
                marks.flush.eq(comes & task.flush),
                marks.load.eq(load),
                marks.turns.eq((comes | load) & (slot != tag.slot)),
                tag.index.eq(index),
                tag.parity.eq(task.parity),
                step.eq(length),
                start.eq(Array(starts)[load_slot] if slots > 2 else starts[0]),
            ]
        with m.If(advance & (comes | load)):
            m.d.sync += tag.slot.eq(slot)
        # Of step and start one is 0; resets cost no logic.
        with m.If(advance & load):
            m.d.sync += step.eq(0)
        with m.If(advance & ~load):
            m.d.sync += start.eq(0)

        # Second stage: positions. A flushed one is -1: a start is loaded by adding it and 1. The
        # latest task's is at hand; it goes to those that rest when another slot's turn comes.
        working = Signal(marks_layout)
        at_work = Signal(tag_layout)
        columns = Signal(bits, reset_less=True)
        position = Signal(bits, init=-1)
        resting = [
            Signal(bits, name=f"resting_{number}", init=-1)
            for number in range(slots if slots > 2 else slots - 1)
        ]
        inside = position[-1]
        begun = Signal(bits)
        total = Signal(bits)
        operand = Signal(bits)
        carry = Signal()
        m.d.comb += [
            emitting.eq(~inside),
            carry.eq(emitting | marks.event | marks.load),
            operand.eq(Mux(inside, step | start, ~columns)),
            # The carry into the sum costs no second adder.
            total.eq((Cat(1, begun) + Cat(carry, operand))[1:]),
        ]
        rested = Array(resting)[tag.slot if slots > 2 else 0] if resting else position
        # Kept, so that the choice between two is all that lies before the adder: there is room for
        # it in the adder's LUTs.
        turning = Signal(attrs={"keep": 1})
        m.d.comb += [
            turning.eq(inside & marks.turns),
            begun.eq(Mux(turning, rested, position)),
        ]
        moves = Signal()
        m.d.comb += moves.eq(emitting | marks.passes | marks.load)
        with m.If(self.enable & moves):
            m.d.sync += position.eq(total)
        with m.If(advance & marks.flush):
            m.d.sync += position.eq(-1)
        for number, rest in enumerate(resting):
            with m.If(advance & marks.turns & (at_work.slot == number if slots > 2 else 1)):
                m.d.sync += rest.eq(position)
        with m.If(advance):
            m.d.sync += [working.eq(marks), at_work.eq(tag)]
            with m.If(settle):
                m.d.sync += columns.eq(self.settings.columns)
        m.d.comb += [
            self.o.load.eq(working.load & (at_work.slot == 0) & ~emitting),
            self.o.multiply.eq(working.event & ~emitting),
            self.o.emit.eq(working.flush | emitting),
            self.o.last.eq(working.flush),
            self.o.index.eq(at_work.index),
            self.o.column.eq(position),
            self.o.parity.eq(at_work.parity),
            self.o.slot.eq(at_work.slot),
        ]
        return m
