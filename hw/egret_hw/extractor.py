"""Extractor: takes the events out of collected blocks, one a cycle."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
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
            "skip": params.skip_bits,
            "level_class": CLASS_BITS if tables else 0,
            "run_class": CLASS_BITS if tables and runs else 0,
            "parity": 1,
            "slot": (params.slots - 1).bit_length(),
        }
    )


def _two(bits: Value) -> Value:
    """Return whether at least two bits are set."""
    return Cat(bits[at] & bits[:at].any() for at in range(1, len(bits))).any()


class Extractor(wiring.Component):
    """Turn a block into tasks: its events in order, or passing over, then the end.

    Latency 2 cycles (1 where W = 1), throughput 1 task a cycle; a block of n events takes n cycles,
    and one more where it is the last one of its substream.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    i : In(stream of block_layout)
        Blocks.
    o : Out(stream of task_layout)
        Tasks.
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
        task = Signal(task_layout(params), reset_less=True)
        take = Signal()
        m.d.comb += [take.eq(~self.o.valid | self.o.ready), self.o.payload.eq(task)]
        if width == 1:
            # The block waits before this; it is one task or two.
            block, event = self.i.payload, Signal()
            taken = Signal()
            m.d.comb += [
                event.eq(block.event & ~taken),
                self.i.ready.eq(take & ~(block.last & event)),
            ]
            with m.If(take):
                m.d.sync += self.o.valid.eq(self.i.valid)
                with m.If(self.i.valid):
                    m.d.sync += taken.eq(block.last & event)
                m.d.sync += [task.event.eq(event), task.flush.eq(block.last & ~event)]
                m.d.sync += [
                    task[name].eq(block[name])
                    for name in task_layout(params).members
                    if name in block_layout(params).members and name != "event"
                ]
            return m

        # The block at work. Of its marks those are cleared, and of what is `left` of its ends, that
        # its tasks are done with: all up to an event.
        block = Signal(block_layout(params), reset_less=True)
        left = Signal(width - 1, reset_less=True)
        full = Signal()
        alone = Signal(reset_less=True)
        fresh = Signal(reset_less=True)
        pending = block.event
        event = pending.any()
        enter = Signal()
        step = Signal()
        m.d.comb += [
            self.i.ready.eq(~full | (take & alone)),
            enter.eq(self.i.valid & self.i.ready),
            step.eq(full & take & ~alone),
        ]
        with m.If(enter):
            m.d.sync += [full.eq(1), block.eq(self.i.payload), left.eq(self.i.payload.end)]
            m.d.sync += fresh.eq(1)
        with m.Elif(take & alone):
            m.d.sync += full.eq(0)
        with m.If(step):
            m.d.sync += [fresh.eq(0), block.hit.eq(0)]
        for at in range(width):
            with m.If(step & ~pending[:at].any()):
                m.d.sync += block.event[at].eq(0)
                if at < width - 1:
                    m.d.sync += left[at].eq(0)
        # The task at work is the block's only one left.
        entering = self.i.payload
        with m.If(enter):
            m.d.sync += alone.eq(~_two(entering.event) & ~(entering.last & entering.event.any()))
        with m.Elif(step):
            later = Cat(pending[at] & pending[:at].any() for at in range(1, width))
            m.d.sync += alone.eq(~_two(later) & ~(block.last & later.any()))
        with m.If(take):
            m.d.sync += [
                self.o.valid.eq(full),
                task.event.eq(event),
                task.flush.eq(block.last & ~event),
                task.parity.eq(block.parity),
                task.slot.eq(block.slot),
            ]

        # An event's number is the collector's, or that of a codeword inside the block, which is
        # short: the bits above have a reset and no logic.
        chosen = [pending[at] & ~pending[:at].any() for at in range(width)]
        whole = block.hit
        bits, end = Cat(Const(0, 1), block.bits), Cat(block.end, Const(0, 1))
        inside = [inside_number(bits, end, at) for at in range(1, width)]
        zeros = [
            leading_zeros(
                [bits[back] for back in range(1, at + 1)],
                [~end[back:at].any() for back in range(1, at)] + [Const(1, 1)],
            )
            for at in range(1, width)
        ]
        # What lies between two events of a block: zeros, or the codeword of a run.
        between = [left[at] & ~pending[: at + 1].any() for at in range(1, width - 1)]
        skip = sum(between, Const(0, 1))
        if runs:
            skip = Mux(block.run_form, pick(between, inside[:-1]), skip)
        choices = [("number", whole, pick(chosen[1:], inside)), ("skip", fresh, skip)]
        if tables:
            choices.append(("level_class", whole, pick(chosen[1:], zeros)))
        if tables and runs:
            choices.append(("run_class", fresh, pick(between, zeros[:-1])))
        for name, outer, inner in choices:
            low = min(len(inner), len(block[name]))
            with m.If(take):
                m.d.sync += task[name].eq(
                    Cat(Mux(outer, block[name][:low], inner), block[name][low:])
                )
            with m.If(take & ~outer):
                m.d.sync += task[name][low:].eq(0)
        return m
