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
        block = self.i.payload
        task = Signal(task_layout(params), reset_less=True)

        # Events of the block that have been taken.
        taken = Signal(width)
        pending = Signal(width)
        chosen = [pending[at] & ~pending[:at].any() for at in range(width)]
        more = Signal()
        event = Signal()
        take = Signal()
        m.d.comb += [
            pending.eq(block.event & ~taken),
            event.eq(pending.any()),
            more.eq(
                Cat(pending[at] & pending[:at].any() for at in range(1, width)).any()
                if width > 1
                else 0
            ),
            take.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(take & ~Mux(block.last, event, more)),
            self.o.payload.eq(task),
        ]
        with m.If(take):
            m.d.sync += self.o.valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += taken.eq(Mux(self.i.ready, 0, taken | Cat(*chosen)))
            m.d.sync += [
                task.event.eq(event),
                task.flush.eq(block.last & ~event),
                task.parity.eq(block.parity),
                task.slot.eq(block.slot),
            ]

        # An event's number is the collector's, or that of a codeword inside the block, which is
        # short: the bits above have a reset and no logic.
        fresh = ~taken.any()
        whole = fresh & block.hit
        if width == 1:
            with m.If(take):
                m.d.sync += [task[name].eq(block[name]) for name in ("number", "skip")]
                m.d.sync += [task[name].eq(block[name]) for name in ("level_class", "run_class")]
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
        choices = [("number", whole, pick(chosen[1:], inside)), ("skip", fresh, skip)]
        if tables:
            choices.append(("level_class", whole, pick(chosen[1:], zeros)))
        if tables and runs:
            choices.append(("run_class", fresh, pick(since, zeros[:-1])))
        for name, outer, inner in choices:
            low = min(len(inner), len(block[name]))
            with m.If(take):
                m.d.sync += task[name].eq(
                    Cat(Mux(outer, block[name][:low], inner), block[name][low:])
                )
            with m.If(take & ~outer):
                m.d.sync += task[name][low:].eq(0)
        return m
