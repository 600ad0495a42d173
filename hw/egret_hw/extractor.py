"""Extractor: takes the events out of collected blocks, one a cycle."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.collector import CLASS_BITS, block_layout, inside_number, leading_zeros, pick

__all__ = ["Extractor", "task_layout"]


def task_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of what an entry asks the positioner for.

    Returns
    -------
    data.StructLayout
        `event`, pass over `skip` weights and multiply the next one; `flush`, the substream is at
        its end; without both, only pass over. `skip` in the run form is the run's codeword as a
        number, whose class is `run_class`; `number` and `level_class` are the level's. `parity`,
        `slot`.
    """
    runs = CODE_NAMES[1] in params.codes
    tables = CODE_NAMES[2] in params.codes
    return data.StructLayout(
        {
            "event": 1,
            "flush": 1,
            "number": params.number_bits,
            "skip": params.number_bits,
            "level_class": CLASS_BITS if tables else 0,
            "run_class": CLASS_BITS if tables and runs else 0,
            "parity": 1,
            "slot": (params.slots - 1).bit_length(),
        }
    )


class Extractor(wiring.Component):
    """Turn a block into tasks: its events in order, or passing over, then the end.

    Latency 1 cycle, throughput 1 task a cycle; a block of n events takes n cycles, and one more
    where it is the last one of its substream.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream of block_layout)
        Blocks.
    o : Out(stream of task_layout)
        Tasks; not registered.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        super().__init__(
            {
                "i": In(stream.Signature(block_layout(params))),
                "o": Out(stream.Signature(task_layout(params))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        width = params.parser_bits
        runs = CODE_NAMES[1] in params.codes
        tables = CODE_NAMES[2] in params.codes
        task = self.o.payload

        # The block at work, its events not yet taken, and whether none has been.
        block = Signal(block_layout(params))
        held = Signal()
        pending = Signal(width)
        fresh = Signal()
        chosen = [pending[at] & ~pending[:at].any() for at in range(width)]
        more = Signal()
        m.d.comb += [
            more.eq((pending & (pending - 1)).any()),
            task.event.eq(pending.any()),
            task.flush.eq(block.last & ~task.event),
            self.o.valid.eq(held),
            self.i.ready.eq(~held | (self.o.ready & ~Mux(block.last, task.event, more))),
            task.parity.eq(block.parity),
            task.slot.eq(block.slot),
        ]
        with m.If(self.i.ready):
            m.d.sync += [
                held.eq(self.i.valid),
                block.eq(self.i.payload),
                pending.eq(self.i.payload.event),
                fresh.eq(1),
            ]
        with m.Elif(self.o.ready):
            m.d.sync += [
                pending.eq(pending & ~Cat(*chosen)),
                fresh.eq(0),
            ]

        # An event's number: the collector's, or that of a codeword inside the block.
        whole = fresh & block.hit
        if width == 1:
            m.d.comb += [
                task.number.eq(block.number),
                task.skip.eq(block.skip),
                task.level_class.eq(block.level_class),
                task.run_class.eq(block.run_class),
            ]
            return m
        bits, end = Cat(Const(0, 1), block.bits), Cat(block.end, Const(0, 1))
        inside = [inside_number(bits, end, at) for at in range(1, width)]
        zeros = [
            leading_zeros(
                [bits[back] for back in range(1, at + 1)],
                [~end[back:at].any() for back in range(1, at)] + [Const(1, 1)],
            )
            for at in range(1, width)
        ]
        m.d.comb += task.number.eq(Mux(whole, block.number, pick(chosen[1:], inside)))
        if tables:
            m.d.comb += task.level_class.eq(Mux(whole, block.level_class, pick(chosen[1:], zeros)))

        # What lies between two events of a block: zeros, or the codeword of a run.
        between = [
            end[at] & ~block.event[at] & ~pending[: at + 1].any() for at in range(1, width - 1)
        ]
        # Of these, those behind the event before.
        since = [
            mark & ~(block.event[at + 1 :] & ~pending[at + 1 :]).any()
            for at, mark in enumerate(between, 1)
        ]
        skip = sum(since, Const(0, 1))
        if runs:
            skip = Mux(block.run_form, pick(since, inside[:-1]), skip)
        m.d.comb += task.skip.eq(Mux(fresh, block.skip, skip))
        if tables and runs:
            m.d.comb += task.run_class.eq(Mux(fresh, block.run_class, pick(since, zeros[:-1])))
        return m
