"""Tracker: keeps the books of the two matrices that may be under way."""

from typing import Any

from amaranth.hdl import Array, Cat, Module, Mux, ShapeLike, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from egret.image_format import MATRIX_FIELDS, ErrorKind
from egret.params import AcceleratorParams
from egret_hw.finisher import job_layout
from egret_hw.layouts import matrix_layout
from egret_hw.packet_reader import POSITION_BITS, fields_layout

__all__ = ["MatrixTracker"]

_SETTLE_CYCLES = 3


class MatrixTracker(wiring.Component):
    """Give matrices their parity, bank and activation memory, and judge them in order.

    Matrices alternate between two parities, so that one can be read while the lanes still work on
    the one before it. A matrix is judged when its packet has passed, its activations have come and
    all its sums are stored; then it is given to the finisher, and its parity is free again. So a
    third one may be with the finisher.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters.

    Attributes
    ----------
    allocate : In(1)
        A matrix begins, with `header`.
    header : In(layout of MATRIX_FIELDS)
        Its header.
    may_allocate : Out(1)
        There is room for one.
    parity : Out(1)
        The parity of the matrix being read, or of the next one.
    passed : In(1)
        Its packet has passed.
    cancel : In(1)
        Forget everything.
    in_flight : Out(2)
        Matrices allocated and not yet given to the finisher.
    kept : Out(1)
        The last matrix keeps its results.
    banks_in_use : Out(code_banks)
        Code banks that they use.
    matrices : Out(array of 2 matrix_layout)
        What the lanes need to know, by parity.
    column_bits, rows : Out(arrays of 2)
        Header fields by parity.
    row_banks : Out(2)
        Bank of the row store by parity.
    placed : In(2)
        The starts of the matrix with this parity have reached the lanes, in this cycle.
    go : Out(2)
        Starts and activations are in place.
    load_allow, load_memory, load_release, load_beats, load_ended
        The activation loader's ports.
    complete, beyond : In(2)
        From the row store, by parity.
    beyond_substream : In(array of 2)
        From the row store.
    bad_prefix, bad_index : In(2 * S)
        The lanes' errors: bit parity * S + substream.
    finish : Out(1)
        `job` is to be done.
    job : Out(job_layout)
        For the finisher.
    finishing : In(1)
        The finisher is at work.
    release : Out(2)
        The matrix with this parity is judged, and good.
    late, late_error, late_position
        A matrix turned out wrong; from registers, a cycle behind its judgement.
    judged : Out(1)
        A good matrix is judged, in this cycle.
    weights : Out(32)
        Its rows times its columns.
    """

    def __init__(self, params: AcceleratorParams) -> None:
        self.params = params
        self._beats = params.activation_depth // params.activation_columns
        substream = max(1, (params.substreams - 1).bit_length())
        super().__init__(
            {
                "allocate": In(1),
                "header": In(fields_layout(MATRIX_FIELDS)),
                "may_allocate": Out(1),
                "parity": Out(1),
                "passed": In(1),
                "cancel": In(1),
                "in_flight": Out(2),
                "kept": Out(1),
                "banks_in_use": Out(params.code_banks),
                "matrices": Out(data.ArrayLayout(matrix_layout(params), 2)),
                "column_bits": Out(data.ArrayLayout(MATRIX_FIELDS["column_bits"].width, 2)),
                "rows": Out(data.ArrayLayout(params.row_depth.bit_length(), 2)),
                "row_banks": Out(2),
                "placed": In(2),
                "go": Out(2),
                "load_allow": Out(1),
                "load_memory": Out(1),
                "load_release": Out(1),
                "load_beats": In(range(self._beats + 1)),
                "load_ended": In(1),
                "complete": In(2),
                "beyond": In(2),
                "beyond_substream": In(data.ArrayLayout(substream, 2)),
                "bad_prefix": In(2 * params.substreams),
                "bad_index": In(2 * params.substreams),
                "finish": Out(1),
                "job": Out(job_layout(params)),
                "finishing": In(1),
                "release": Out(2),
                "late": Out(1),
                "late_error": Out(ErrorKind),
                "late_position": Out(POSITION_BITS),
                "judged": Out(1),
                "weights": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params = self.params
        substreams = params.substreams
        header = self.header
        busy = Signal(2)
        passed = Signal(2)
        placed = Signal(2)
        wanted = Signal(2)
        wrong = Signal(2)
        more = Signal(2)
        keeps = Signal(2)

        # What a header says means nothing while its matrix is not busy: no reset has to reach it.
        def held(shape: ShapeLike, name: str) -> list[Any]:
            return [Signal(shape, name=f"{name}_{p}", reset_less=True) for p in range(2)]

        needed = held(self.load_beats.shape(), "needed")
        received = Array(held(self.load_beats.shape(), "received"))
        jobs = Array(held(job_layout(params), "job"))
        sizes = Array(held(32, "size"))
        matrices = held(matrix_layout(params), "matrix")
        rows = held(params.row_depth.bit_length(), "rows")
        column_bits = held(MATRIX_FIELDS["column_bits"].width, "column_bits")
        m.d.comb += [
            port[p].eq(values[p])
            for port, values in (
                (self.matrices, matrices),
                (self.rows, rows),
                (self.column_bits, column_bits),
            )
            for p in range(2)
        ]
        head = Signal()
        tail = Signal()
        # Of the activation memory and the row bank, as every matrix so far leaves them.
        memory_now = Signal()
        bank_now = Signal()
        memory = Signal()
        m.d.comb += [
            self.parity.eq(head),
            # The starts of the one before must be placed: the lanes take the newest one's settings
            # when its starts come, the last lane some cycles later than the first.
            self.may_allocate.eq(~busy.bit_select(head, 1) & (placed | ~busy).bit_select(~head, 1)),
            self.in_flight.eq(busy[0] + busy[1]),
            memory.eq(memory_now ^ header.load_activations),
        ]
        for bank in range(params.code_banks):
            m.d.comb += self.banks_in_use[bank].eq(
                Cat(busy[p] & (self.matrices[p].code_bank == bank) for p in range(2)).any()
            )

        # The job that the finisher has, which ends whatever is cancelled.
        finishing = Signal(job_layout(params), reset_less=True)
        with m.If(self.finish):
            m.d.sync += finishing.eq(self.job)
        finishing_keep = self.finishing & finishing.keep_activations
        bits = (params.activation_columns - 1).bit_length()

        for p in range(2):
            own = matrices[p]
            job = jobs[p]
            with m.If(self.allocate & (head == p)):
                m.d.sync += [
                    busy[p].eq(1),
                    passed[p].eq(0),
                    placed[p].eq(0),
                    wanted[p].eq(header.load_activations),
                    needed[p].eq((header.columns + (params.activation_columns - 1)) >> bits),
                    wrong[p].eq(0),
                    more[p].eq(header.more),
                    keeps[p].eq(header.keep_activations),
                    self.kept.eq(header.keep_activations),
                    memory_now.eq(memory ^ header.keep_activations),
                    bank_now.eq(bank_now ^ ~header.more),
                    self.row_banks[p].eq(bank_now),
                    rows[p].eq(header.rows),
                    column_bits[p].eq(header.column_bits),
                    sizes[p].eq(header.rows * header.columns),
                    own.code_bank.eq(header.code_bank),
                    own.zigzag.eq(header.zigzag),
                    own.memory.eq(memory),
                    own.columns.eq(header.columns),
                    own.map_base.eq(header.map_base),
                    own.map_entries.eq(header.map_entries),
                    job.rows.eq(header.rows),
                    job.bias_base.eq(header.bias_base),
                    job.has_bias.eq(header.has_bias),
                    job.relu.eq(header.relu),
                    job.keep_activations.eq(header.keep_activations),
                    job.emit_results.eq(header.emit_results),
                    job.emit_activations.eq(header.emit_activations),
                    job.multiplier.eq(header.multiplier),
                    job.shift.eq(header.shift),
                    job.bank.eq(bank_now),
                    job.memory.eq(~memory),
                ]
            with m.If(self.passed & (head == p)):
                m.d.sync += passed[p].eq(1)
            with m.If(self.placed[p]):
                m.d.sync += placed[p].eq(1)
            # The loader's packet belongs to the first matrix that wants one.
            enough = self.load_beats >= needed[p]
            right = self.load_ended & (self.load_beats == needed[p])
            with m.If(wanted[p] & ((tail == p) | ~wanted[1 - p]) & (enough | self.load_ended)):
                m.d.comb += self.load_release.eq(right)
                m.d.sync += [
                    wanted[p].eq(0),
                    wrong[p].eq(~right),
                    # More may have been taken ahead, as many as there was time for.
                    received[p].eq(Mux(enough, needed[p], self.load_beats)),
                ]
            # Results that are kept by the matrix before, and the row bank that is still read.
            waits = ((tail != p) & keeps[1 - p]) | (
                self.finishing
                & (finishing.keep_activations | (finishing.bank == self.row_banks[p]))
            )
            m.d.sync += self.go[p].eq(busy[p] & placed[p] & ~wanted[p] & ~waits)
        with m.If(self.passed):
            m.d.sync += head.eq(~head)

        # A packet may be taken ahead where no other matrix may come to write that memory, into the
        # memory that the next matrix to load will get. A matrix behind one that still waits for its
        # packet is no obstacle: it reads what that packet brings.
        used = Cat(
            busy[p]
            & ~wanted[p]
            & ~(wanted[1 - p] & (tail != p))
            & (self.matrices[p].memory == self.load_memory)
            for p in range(2)
        )
        m.d.comb += [
            self.load_memory.eq(
                Mux(
                    wanted.any(),
                    Mux(
                        wanted.bit_select(tail, 1),
                        Mux(tail, self.matrices[1].memory, self.matrices[0].memory),
                        Mux(tail, self.matrices[0].memory, self.matrices[1].memory),
                    ),
                    ~memory_now,
                )
            ),
            self.load_allow.eq(
                ~used.any() & ~finishing_keep & (wanted.any() | ~((busy & keeps).any() | self.kept))
            ),
        ]

        # Judging: the lanes' errors are looked through one by one only where there are any.
        prefixes = [self.bad_prefix[p * substreams :][:substreams] for p in range(2)]
        indices = [self.bad_index[p * substreams :][:substreams] for p in range(2)]
        any_bad = Signal(2)
        m.d.sync += [any_bad[p].eq(prefixes[p].any() | indices[p].any()) for p in range(2)]
        bad_prefix = Mux(tail, prefixes[1], prefixes[0])
        bad_index = Mux(tail, indices[1], indices[0])
        settle = Signal(range(_SETTLE_CYCLES + 1))
        substream = Signal(range(max(2, substreams)))
        retire = Signal()
        late = Signal()
        late_error = Signal(ErrorKind)
        late_position = Signal(POSITION_BITS)
        late_held = Signal(POSITION_BITS, reset_less=True)
        mine = busy & passed & self.complete & ~wanted
        m.d.comb += [
            self.job.eq(jobs[tail]),
            self.weights.eq(sizes[tail]),
            self.judged.eq(retire),
        ]
        with m.FSM():
            with m.State("Wait"):
                m.d.sync += settle.eq(0)
                with m.If(mine.bit_select(tail, 1)):
                    m.next = "Settle"
            with m.State("Settle"):
                # The last errors are still on their way through registers.
                m.d.sync += [settle.eq(settle + 1), substream.eq(0)]
                with m.If(settle == _SETTLE_CYCLES):
                    m.next = "Judge"
            with m.State("Judge"):
                with m.If(wrong.bit_select(tail, 1)):
                    m.d.comb += [
                        late.eq(1),
                        late_error.eq(ErrorKind.ACTIVATIONS),
                        late_position.eq(received[tail]),
                    ]
                    m.next = "Wait"
                with m.Elif(any_bad.bit_select(tail, 1)):
                    m.next = "Search"
                with m.Elif(self.beyond.bit_select(tail, 1)):
                    m.d.comb += [
                        late.eq(1),
                        late_error.eq(ErrorKind.ROW),
                        late_position.eq(self.beyond_substream[tail]),
                    ]
                    m.next = "Wait"
                with m.Elif(more.bit_select(tail, 1)):
                    m.d.comb += retire.eq(1)
                    m.next = "Wait"
                with m.Elif(~self.finishing):
                    m.d.comb += [self.finish.eq(~self.cancel), retire.eq(1)]
                    m.next = "Wait"
            with m.State("Search"):
                here_index = bad_index.bit_select(substream, 1)
                m.d.sync += substream.eq(substream + 1)
                with m.If(here_index | bad_prefix.bit_select(substream, 1)):
                    m.d.comb += [
                        late.eq(1),
                        late_error.eq(Mux(here_index, ErrorKind.INDEX, ErrorKind.PREFIX)),
                        late_position.eq(substream),
                    ]
                    m.next = "Wait"
        # A cycle later, which nothing waits for: where the reader goes is on its own longest path.
        m.d.sync += [
            self.late.eq(late),
            self.late_error.eq(late_error),
            late_held.eq(late_position),
        ]
        m.d.comb += self.late_position.eq(late_held)
        with m.If(retire):
            m.d.comb += self.release.eq(1 << tail)
            m.d.sync += [busy.bit_select(tail, 1).eq(0), tail.eq(~tail)]
        return m
