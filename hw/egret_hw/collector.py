"""Collector: turns parsed blocks into blocks of events, and zeros into a number to skip."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import CLASSES
from egret.params import CODE_NAMES, AcceleratorParams
from egret_hw.layouts import block_slot_bits

__all__ = ["CLASS_BITS", "Collector", "block_layout", "inside_number", "leading_zeros", "pick"]

CLASS_BITS = (CLASSES - 1).bit_length()
_ZEROS_BITS = CLASS_BITS + 1
"""Zeros that may lead a codeword: those of its class, and of the suffix of a last class."""


def block_layout(params: AcceleratorParams) -> data.StructLayout:
    """Layout of a block with work in it: W bits of one substream.

    Returns
    -------
    data.StructLayout
        `bits`, from the second in time on; `end`, codewords' ends, but for a last bit; `event`,
        ends of weights that must be multiplied; `number`, the first codeword that ends here, as a
        number; `hit`, it is an event; `skip`, weights to pass over before the first event (as the
        run's number in the run form), or where there is none; `level_class` and `run_class`, zeros
        that lead the first codeword, and the run before the first event; `last`, the substream's
        last block of the matrix; `parity`, of the matrix; `run_form`, of its code; `slot`.
    """
    width = params.parser_bits
    runs = CODE_NAMES[1] in params.codes
    tables = CODE_NAMES[2] in params.codes
    return data.StructLayout(
        {
            "bits": width - 1,
            "end": width - 1,
            "event": width,
            "hit": 1,
            "number": params.number_bits,
            "skip": params.skip_bits,
            "level_class": CLASS_BITS if tables else 0,
            "run_class": CLASS_BITS if tables and runs else 0,
            "last": 1,
            "parity": 1,
            "run_form": int(runs),
            "slot": (params.slots - 1).bit_length(),
        }
    )


def pick(chosen: Sequence[Value], values: Sequence[Value]) -> Value:
    """Return the value whose bit of `chosen` is set, at most one; 0 without."""
    result: Value = Const(0, 1)
    for choose, value in zip(chosen, values, strict=True):
        result = result | (value & choose.replicate(len(value)))
    return result


def inside_number(bits: Value, end: Value, position: int) -> Value:
    """Return the codeword that ends at a position and began in this block, as a number.

    Parameters
    ----------
    bits, end : Value
        In order of time.
    position : int
        Its last bit; at least one codeword ends before it.
    """
    return Cat(
        bits[position],
        *(bits[at] & ~end[at:position].any() for at in reversed(range(1, position))),
    )


def leading_zeros(bits: Sequence[Value], inside: Sequence[Value]) -> Value:
    """Return how many zeros lead those bits that are `inside`, which follow each other."""
    led: list[Value] = []
    leads: Value = Const(1, 1)
    for bit, within in zip(bits, inside, strict=True):
        leads = leads & ~(bit & within)
        led.append(leads & within)
    return sum(led, Const(0, 1))


class Collector(wiring.Component):
    """Form the number of the first codeword that ends in a block, and count what to skip.

    A codeword without the zeros that lead it is a number; only the first one to end in a block may
    have begun in an earlier one, so only it needs the substream's carry. Blocks without an event
    vanish: their weights are 0, and are added up until an event of the same substream comes, or
    their number grows large. Every substream has its own carry and sum, in rings that turn with
    the valid blocks, which arrive in slot order.

    Latency 4 enabled cycles, throughput 1 block an enabled cycle.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    enable : In(1)
        Advance.
    i_valid, i_slot, i_last, i_parity, i_bits, i_end, i_event
        From the parser.
    i_run_form : In(1)
        Of the code of the block's matrix.
    o_valid : Out(1)
        A block with work is there.
    o : Out(block_layout)
        The block.
    bad : Out(1)
        A prefix was too long, in a block of `bad_slot` and `bad_parity`.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self._params = params
        width = params.parser_bits
        slot_bits = block_slot_bits(params)
        super().__init__(
            {
                "enable": In(1),
                "i_valid": In(1),
                "i_slot": In(slot_bits),
                "i_last": In(1),
                "i_parity": In(1),
                "i_run_form": In(1),
                "i_bits": In(width),
                "i_end": In(width),
                "i_event": In(width),
                "o_valid": Out(1),
                "o": Out(block_layout(params)),
                "bad": Out(1),
                "bad_slot": Out(slot_bits),
                "bad_parity": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self._params
        width, slots, number_bits = params.parser_bits, params.slots, params.number_bits
        runs = CODE_NAMES[1] in params.codes
        tables = CODE_NAMES[2] in params.codes
        run_form = self.i_run_form if runs else Const(0, 1)
        places = range(width)

        # First stage: what the open codeword needs of this block.
        bits, end = self.i_bits, self.i_end
        first = [end[at] & ~end[:at].any() for at in places]
        behind_final = [~end[at:].any() for at in range(1, width)]
        kept_layout = data.StructLayout(
            {
                "last": 1,
                "parity": 1,
                "run_form": 1,
                "slot": (slots - 1).bit_length(),
                "bits": width,
                "end": width,
                "event": width,
            }
        )
        local_layout = data.StructLayout(
            {
                **kept_layout.members,
                "shift": (width - 1).bit_length(),
                "closes": 1,
                "tail": width - 1,
                "lead": width.bit_length() if tables else 0,
                "led": 1,
                "tail_lead": (width - 1).bit_length() if tables else 0,
                "tail_led": 1,
            }
        )
        entering = Signal(local_layout)
        m.d.comb += [
            entering.last.eq(self.i_last),
            entering.parity.eq(self.i_parity),
            entering.run_form.eq(run_form),
            entering.slot.eq(self.i_slot),
            entering.bits.eq(bits),
            entering.end.eq(end),
            entering.event.eq(self.i_event & end),
            entering.shift.eq(pick(first, [Const(width - 1 - at, 5) for at in places])),
            entering.closes.eq(end.any() | self.i_last),
            # What stays open, the latest bit lowest.
            entering.tail.eq(
                Cat(bits[at] & behind_final[at - 1] for at in reversed(range(1, width)))
            ),
        ]
        if tables:
            to_first = [~end[:at].any() for at in places]
            m.d.comb += [
                entering.lead.eq(leading_zeros([bits[at] for at in places], to_first)),
                entering.led.eq(Cat(bits[at] & to_first[at] for at in places).any()),
                entering.tail_lead.eq(
                    leading_zeros([bits[at] for at in range(1, width)], behind_final)
                ),
                entering.tail_led.eq(entering.tail.any()),
            ]
        local = Signal(local_layout, reset_less=True)
        valid = Signal(3)
        m.d.sync += self.bad.eq(0)
        with m.If(self.enable):
            m.d.sync += [
                local.eq(entering),
                valid.eq(Cat(self.i_valid, valid)),
                self.bad.eq(self.i_valid & (self.i_event & ~end).any()),
                self.bad_slot.eq(self.i_slot),
                self.bad_parity.eq(self.i_parity),
            ]

        # Second stage: the open codeword. A shift in two steps aligns it, the second one behind.
        # Here and below a register is cleared by a condition of its own, which is its reset and
        # no logic.
        open_layout = data.StructLayout(
            {"carry": number_bits, "zeros": _ZEROS_BITS if tables else 0, "led": int(tables)}
        )
        ring = [Signal(open_layout, name=f"open_{index}") for index in range(slots)]
        opened = ring[-1]
        joined = Cat(local.bits[::-1], opened.carry)
        zeros_now = Signal(_ZEROS_BITS)
        tail_bits = min(width - 1, number_bits)
        turn = Signal()
        m.d.comb += turn.eq(self.enable & valid[0])
        with m.If(turn):
            m.d.sync += [ring[index].eq(ring[index - 1]) for index in range(1, slots)]
            # Where no codeword ends, the tail is the whole block but its first bit.
            m.d.sync += ring[0].carry.eq(Cat(local.tail, joined[width - 1 :]))
        with m.If(turn & local.closes):
            m.d.sync += ring[0].carry[tail_bits:].eq(0)
        with m.If(turn & local.last):
            m.d.sync += ring[0].carry[:tail_bits].eq(0)
        if tables:
            m.d.comb += zeros_now.eq(opened.zeros + Mux(opened.led, 0, local.lead))
            with m.If(turn):
                m.d.sync += [
                    ring[0].zeros.eq(Mux(local.closes, local.tail_lead, zeros_now)),
                    ring[0].led.eq(Mux(local.closes, local.tail_led, opened.led | local.led)),
                ]
            with m.If(turn & local.last):
                m.d.sync += [ring[0].zeros.eq(0), ring[0].led.eq(0)]
        # Weights that are 0 before the first event; those, or the run, behind the last one.
        event = local.event
        hit = Cat(event[at] & ~local.end[:at].any() for at in places).any()
        counted = [local.end[at] & ~event[: at + 1].any() for at in places]
        behind_event = [event[:at].any() & ~event[at:].any() for at in range(1, width)]
        aligned = Signal(
            data.StructLayout(
                {
                    **kept_layout.members,
                    "fine": 1,
                    "number": number_bits + 1,
                    "hit": 1,
                    "run_first": 1,
                    "passes": 1,
                    "before": width.bit_length(),
                    "after": width - 1,
                }
            ),
            reset_less=True,
        )
        zeros = Signal(_ZEROS_BITS, reset_less=True)
        coarse = Cat(Const(0, 1), local.shift[1:])
        with m.If(self.enable):
            m.d.sync += [aligned[name].eq(local[name]) for name in kept_layout.members]
            m.d.sync += [
                aligned.fine.eq(local.shift[:1]),
                aligned.number.eq(joined >> coarse),
                zeros.eq(zeros_now),
                aligned.hit.eq(hit),
                aligned.run_first.eq(local.run_form & local.end.any() & ~hit),
                aligned.passes.eq(event.any() | local.last),
                aligned.before.eq(Mux(local.run_form, 0, sum(counted))),
                aligned.after.eq(
                    Cat(local.end[at] & behind_event[at - 1] for at in range(1, width))
                ),
            ]
        # Third stage: the first codeword's number, and what it or the block's zeros add.
        after: Value = sum(aligned.after, Const(0, 1))
        if runs:
            final = [aligned.after[at - 1] & ~aligned.after[at:].any() for at in range(1, width)]
            inside = [inside_number(aligned.bits, aligned.end, at) for at in range(1, width)]
            after = Mux(aligned.run_form, pick(final, inside), after)
        ready = Signal(
            data.StructLayout(
                {
                    **kept_layout.members,
                    "number": number_bits,
                    "hit": 1,
                    "run_first": 1,
                    "passes": 1,
                    "after": max(width - 1 if runs else 0, (width - 1).bit_length()),
                    "after_class": (width - 1).bit_length() if tables and runs else 0,
                }
            ),
            reset_less=True,
        )
        number = Signal(number_bits)
        m.d.comb += number.eq(Mux(aligned.fine, aligned.number[1:], aligned.number[:number_bits]))
        if tables and runs:
            between = [
                leading_zeros(
                    [aligned.bits[back] for back in range(1, at + 1)],
                    [~aligned.end[back:at].any() for back in range(1, at)] + [Const(1, 1)],
                )
                for at in range(1, width)
            ]
            with m.If(self.enable):
                m.d.sync += ready.after_class.eq(pick(final, between))
        counted_bits = len(aligned.before)
        low_step = Signal(counted_bits, reset_less=True)
        high_step = Signal(params.skip_bits - counted_bits, reset_less=True)
        zeros_class = Signal(CLASS_BITS, reset_less=True)
        with m.If(self.enable):
            m.d.sync += [
                ready[name].eq(aligned[name])
                for name in (*kept_layout.members, "hit", "run_first", "passes")
            ]
            m.d.sync += [
                ready.number.eq(number),
                ready.after.eq(after),
                low_step.eq(Mux(aligned.run_first, number, aligned.before)),
                high_step.eq(number[counted_bits:] if runs else 0),
                zeros_class.eq(zeros[:CLASS_BITS] | zeros[CLASS_BITS].replicate(CLASS_BITS)),
            ]
        with m.If(self.enable & ~aligned.run_first):
            m.d.sync += high_step.eq(0)

        # Fourth stage: weights to skip.
        skip_layout = data.StructLayout(
            {"skip": params.skip_bits, "run_class": CLASS_BITS if tables and runs else 0}
        )
        skips = [Signal(skip_layout, name=f"skip_{index}") for index in range(slots)]
        skipped = skips[-1]
        total = Signal(skip_layout)
        passes = Signal()
        after_bits = len(ready.after)
        m.d.comb += [
            total.skip.eq(skipped.skip + Cat(low_step, high_step)),
            # Too many for another block's: they go on ahead.
            passes.eq(ready.passes | (skipped.skip[-1] & ~ready.run_form)),
        ]
        turn_skips = Signal()
        m.d.comb += turn_skips.eq(self.enable & valid[2])
        with m.If(turn_skips):
            m.d.sync += [skips[index].eq(skips[index - 1]) for index in range(1, slots)]
            m.d.sync += skips[0].skip.eq(
                Cat(Mux(passes, ready.after, total.skip[:after_bits]), total.skip[after_bits:])
            )
        with m.If(turn_skips & passes):
            m.d.sync += skips[0].skip[after_bits:].eq(0)
        with m.If(turn_skips & ready.last):
            m.d.sync += skips[0].skip[:after_bits].eq(0)
        if tables and runs:
            m.d.comb += total.run_class.eq(Mux(ready.run_first, zeros_class, skipped.run_class))
            with m.If(turn_skips):
                m.d.sync += skips[0].run_class.eq(Mux(passes, ready.after_class, total.run_class))
        block = Signal(block_layout(params), reset_less=True)
        m.d.comb += self.o.eq(block)
        with m.If(self.enable):
            m.d.sync += [
                self.o_valid.eq(valid[2] & passes),
                block.bits.eq(ready.bits[1:]),
                block.end.eq(ready.end[:-1]),
                block.event.eq(ready.event),
                block.hit.eq(ready.hit),
                block.number.eq(ready.number),
                block.skip.eq(total.skip),
                block.level_class.eq(zeros_class),
                block.run_class.eq(total.run_class),
                block.last.eq(ready.last),
                block.parity.eq(ready.parity),
                block.run_form.eq(ready.run_form),
                block.slot.eq(ready.slot),
            ]
        return m
