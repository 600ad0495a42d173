"""Proofs of the components that a stream passes through: nothing lost, doubled or reordered."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from egret.params import FANOUT_SPARE, AcceleratorParams
from egret_hw.activation_loader import ActivationLoader
from egret_hw.elastic import ElasticBuffer
from egret_hw.fanout import Fanout
from egret_hw.gearbox import Gearbox, beat_layout
from egret_hw.queue import Queue
from egret_hw.readout import ReadoutNode
from egret_sim.formal.bench import Bench
from egret_sim.formal.solver import Proof

__all__ = [
    "STREAM_PROOFS",
    "FannedQueues",
    "Token",
    "elastic_bench",
    "fanout_bench",
    "queue_bench",
]

_NEVER = Const(0, 1)
_PAYLOAD_BITS = 4
_FIFO = "stable until ready, nothing lost, doubled or reordered, no lock-up"


class Token:
    """One transfer, whichever the solver picks, followed through what must keep it in its place.

    What holds for any one transfer holds for all: each leaves once, unchanged, behind those that
    came before it and before those that came after.

    Parameters
    ----------
    bench : Bench
        Where to.
    name : str
        Begins the names of its signals.
    push, pop : Value
        A transfer enters, leaves.
    entering : Value
        Payload that enters.
    capacity : int
        Transfers that can be inside.

    Attributes
    ----------
    count : Signal
        Transfers inside.
    inside : Signal
        The token has entered and not left.
    payload : Signal
        Its payload.
    ahead : Signal
        Transfers that must leave before it.
    marks : Value
        It enters in this cycle.
    """

    def __init__(
        self, bench: Bench, name: str, push: Value, pop: Value, entering: Value, capacity: int
    ) -> None:
        m = bench.m
        self.count = bench.register(range(capacity + 1), f"{name}_count")
        self.ahead = bench.register(range(capacity + 1), f"{name}_ahead")
        self.inside = bench.register(1, f"{name}_inside")
        self.payload = bench.register(len(entering), f"{name}_payload")
        seen = bench.register(1, f"{name}_seen")
        self.marks = push & ~seen & bench.free(f"{name}_choose")
        m.d.sync += self.count.eq(self.count + push - pop)
        with m.If(self.marks):
            m.d.sync += [
                seen.eq(1),
                self.inside.eq(1),
                self.payload.eq(entering),
                self.ahead.eq(self.count - pop),
            ]
        with m.Elif(pop & self.inside):
            m.d.sync += [self.inside.eq(self.ahead != 0), self.ahead.eq(self.ahead - 1)]
        bench.check(~push | pop | (self.count < capacity))
        bench.check(~pop | self.count.any())
        bench.check(~self.inside | (seen & (self.ahead < self.count)))


def _check_progress(bench: Bench, waits: Value, goes: Value, cycles: int) -> None:
    """Assert that what waits goes within some cycles."""
    waited = bench.register(range(cycles + 2), "waited")
    bench.m.d.sync += waited.eq(Mux(waits & ~goes, waited + 1, 0))
    bench.check(waited < cycles)


def _fifo_bench(dut: wiring.Component, capacity: int, latency: int) -> tuple[Bench, Token]:
    bench = Bench(dut)
    bench.offer(dut.i, "i")
    bench.accept(dut.o, "o")
    push, pop = dut.i.valid & dut.i.ready, dut.o.valid & dut.o.ready
    token = Token(bench, "token", push, pop, dut.i.payload, capacity)
    bench.check_stable(dut.o, _NEVER)
    # Full throughput follows: with anything inside for long enough, something is offered.
    _check_progress(bench, token.count.any(), dut.o.valid, latency)
    bench.check((token.count == capacity) | dut.i.ready)
    first = token.inside & (token.ahead == 0)
    bench.check(~(first & dut.o.valid) | (dut.o.payload == token.payload))
    return bench, token


def elastic_bench(dut: wiring.Component) -> Bench:
    """Return the proof of an `ElasticBuffer` of four bits, or of what should be one."""
    bench, token = _fifo_bench(dut, 2, 1)
    spare, spare_full = bench.tap("spare", _PAYLOAD_BITS), bench.tap("spare_full")
    bench.check(dut.level == token.count)
    bench.check(dut.o.valid | ~spare_full)
    second = token.inside & (token.ahead == 1)
    bench.check(~second | (spare_full & (spare == token.payload)))
    return bench


def _address_ranks(depth: int) -> list[int]:
    """Return the place of each address in the cycle that a queue's pointers go through."""
    bits = depth.bit_length() - 1
    ranks = [0] * depth
    address = 0
    for rank in range(depth):
        ranks[address] = rank
        top, below = address >> (bits - 1) & 1, address >> (bits - 2) & 1
        low = address & (depth // 2 - 1)
        address = low << 1 | (top ^ below ^ (low == 0))
    return ranks


def _check_queue_books(
    bench: Bench, path: str, roomy: Value, depth: int, spare: int
) -> tuple[Value, Value, Value]:
    """Assert what a `Queue` knows of itself; return where it writes, and what its memory holds."""
    bits = depth.bit_length() - 1
    sequence, taken = bench.tap(f"{path}sequence", bits + spare), bench.tap(f"{path}taken", bits)
    room, some = bench.tap(f"{path}room"), bench.tap(f"{path}some")
    ranks = Array(Const(rank, bits) for rank in _address_ranks(depth))
    written = sequence[spare:]
    for below in range(spare):
        later = ranks[sequence[below:][:bits]]
        bench.check(later == (ranks[written] + (spare - below))[:bits])
    held = (ranks[written] - ranks[taken])[:bits]
    bench.check(some == (held.any() | ~room))
    bench.check(room | ~held.any())
    inside = Mux(held.any(), held, Mux(room, 0, depth))
    bench.check(roomy == (inside <= depth - spare))
    return written, taken, inside


def queue_bench(dut: wiring.Component, depth: int, spare: int) -> Bench:
    """Return the proof of a `Queue` of four bits, or of what should be one."""
    if depth == 2:
        bench, token = _fifo_bench(dut, 2, 1)
        spare, full = bench.tap("buffer.spare", _PAYLOAD_BITS), bench.tap("buffer.spare_full")
        bench.check(token.count == dut.o.valid + full)
        bench.check(dut.o.valid | ~full)
        bench.check(~(token.inside & (token.ahead == 1)) | (full & (spare == token.payload)))
        return bench
    bench, token = _fifo_bench(dut, depth + 1, 2)
    bits = depth.bit_length() - 1
    written, taken, inside = _check_queue_books(bench, "", dut.roomy, depth, spare)
    ranks = Array(Const(rank, bits) for rank in _address_ranks(depth))
    entries = Array(bench.tap(f"entries[{n}]", _PAYLOAD_BITS) for n in range(depth))
    # Where the token was written to.
    place = bench.register(bits, "place")
    with bench.m.If(token.marks):
        bench.m.d.sync += place.eq(written)
    bench.check(token.count == inside + dut.o.valid)
    in_memory = token.inside & ((token.ahead != 0) | ~dut.o.valid)
    before = (ranks[place] - ranks[taken])[:bits]
    bench.check(~in_memory | (entries[place] == token.payload))
    bench.check(~in_memory | (token.ahead == before + dut.o.valid))
    return bench


def _gearbox_params(lanes: int, parser_bits: int, parser_cut: int) -> AcceleratorParams:
    return AcceleratorParams(
        name="formal", lanes=lanes, parser_bits=parser_bits, parser_cut=parser_cut, bus_bits=32
    )


def gearbox_bench(dut: wiring.Component) -> Bench:
    """Return the proof of a `Gearbox`, or of what should be one."""
    bench = Bench(dut)
    m, params = bench.m, dut.params
    beats, beat_bits, slots = params.beats_per_word, params.beat_bits, params.slots
    bench.offer(dut.i, "i")
    bench.accept(dut.o, "o")
    bench.check_stable(dut.o, _NEVER)
    push, pop = dut.i.valid & dut.i.ready, dut.o.valid & dut.o.ready
    # The word whose beats leave, and which of them is next.
    word = bench.register(dut.i.payload.shape(), "given")
    number = bench.register(range(beats + 1), "number")
    busy = bench.register(1, "busy")
    done = pop & (number == beats - 1)
    with m.If(push):
        m.d.sync += [word.eq(dut.i.payload), number.eq(0), busy.eq(1)]
    with m.Elif(pop):
        m.d.sync += [number.eq(number + 1), busy.eq(~done)]
    bench.check(~push | ~busy | done)
    bench.check(dut.o.valid == busy)
    bench.check(dut.i.ready == (~busy | done))
    beat = dut.o.payload
    bench.check(~busy | (beat.bits == word.data.word_select(number, beat_bits)))
    bench.check(~busy | (beat.parity == word.parity))
    # Beats of a word go to the slots in turn; only each slot's first or last one is marked.
    bench.check(~busy | (beat.first == (word.first & (number < slots))))
    bench.check(~busy | (beat.last == (word.last & (number + slots >= beats))))
    left = bench.tap("left", beats.bit_length())
    held = bench.tap("word", len(Value.cast(word)))
    shift = Mux(busy, number * beat_bits, 0)
    bench.check(left == Mux(busy, beats - number, 0))
    bench.check(~busy | (number < beats))
    bench.check(~busy | (held[: params.bus_bits] == word.data >> shift))
    bench.check(~busy | (held[params.bus_bits :] == Value.cast(word)[params.bus_bits :]))
    return bench


class FannedQueues(wiring.Component):
    """A `Fanout` with the queues of two lanes behind it.

    Parameters
    ----------
    params : AcceleratorParams
        Parameters, of two lanes.
    fanout : wiring.Component, optional
        What should be a `Fanout`.

    Attributes
    ----------
    i : In(stream of beat_layout)
        Beats.
    o, other : Out(stream of beat_layout)
        From the first and the second lane's queue.
    valid, beat : Out
        What the fan-out sends.
    fits : Out(1)
        Both queues have room.
    """

    def __init__(self, params: AcceleratorParams, fanout: wiring.Component | None = None) -> None:
        self.params = params
        self._fanout = fanout or Fanout(params)
        own = stream.Signature(beat_layout(params.parser_bits))
        super().__init__(
            {
                "i": In(stream.Signature(beat_layout(params.beat_bits))),
                "o": Out(own),
                "other": Out(own),
                "valid": Out(1),
                "beat": Out(beat_layout(params.beat_bits)),
                "fits": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        params, fanout = self.params, self._fanout
        m.submodules.fanout = fanout
        wiring.connect(m, wiring.flipped(self.i), fanout.i)
        m.d.comb += [self.valid.eq(fanout.valid), self.beat.eq(fanout.o)]
        ready, roomy = [], []
        for index, port in enumerate((self.o, self.other)):
            queue = Queue(beat_layout(params.parser_bits), params.input_depth, spare=FANOUT_SPARE)
            m.submodules[f"queue_{index}"] = queue
            ready.append(queue.i.ready)
            roomy.append(queue.roomy)
            wiring.connect(m, queue.o, wiring.flipped(port))
            m.d.comb += [
                queue.i.valid.eq(fanout.valid),
                queue.i.payload.bits.eq(fanout.o.bits.word_select(index, params.parser_bits)),
                queue.i.payload.first.eq(fanout.o.first),
                queue.i.payload.last.eq(fanout.o.last),
                queue.i.payload.parity.eq(fanout.o.parity),
            ]
        m.d.comb += [
            fanout.ready.eq(Cat(ready)),
            fanout.roomy.eq(Cat(roomy)),
            self.fits.eq(Cat(ready).all()),
        ]
        return m


def fanout_bench(dut: FannedQueues) -> Bench:
    """Return the proof of a `Fanout`, or of what should be one, between queues."""
    bench = Bench(dut)
    depth = dut.params.input_depth
    bench.offer(dut.i, "i")
    bench.accept(dut.o, "o")
    bench.accept(dut.other, "other")
    push = dut.i.valid & dut.i.ready
    bench.check(dut.valid == bench.past(push))
    offered = bench.past(Value.cast(dut.i.payload))
    bench.check(~dut.valid | (Value.cast(dut.beat) == offered))
    bench.check(~dut.valid | dut.fits)
    room = bench.tap("fanout.room")
    waits = dut.i.valid
    for index in range(2):
        roomy = bench.tap(f"queue_{index}.roomy")
        *_, inside = _check_queue_books(bench, f"queue_{index}.", roomy, depth, FANOUT_SPARE)
        bench.check(~room | (inside <= depth - 2))
        waits &= inside == 0
    _check_progress(bench, waits, push, 3)
    return bench


def readout_bench(dut: wiring.Component, lanes_behind: int) -> Bench:
    """Return the proof of a `ReadoutNode`, or of what should be one."""
    bench = Bench(dut)
    m = bench.m
    bench.accept(dut.o, "o")
    bench.check_stable(dut.o, _NEVER)
    # Where a sum comes from shows in its number.
    spare, full = (
        bench.tap("buffer.spare", len(Value.cast(dut.o.payload))),
        bench.tap("buffer.spare_full"),
    )
    out = Value.cast(dut.o.payload)
    source_bit = dut.o.payload.shape()["substream"].offset
    gone = []
    for own, (name, port) in enumerate((("behind", dut.behind), ("lane", dut.lane))):
        bench.offer(port, name)
        bench.assume(port.payload.substream[0] == own)
        first = dut.o.valid & (out[source_bit] == own)
        second = full & (spare[source_bit] == own)
        push = port.valid & port.ready
        token = Token(bench, name, push, first & dut.o.ready, Value.cast(port.payload), 2)
        bench.check(token.count == first + second)
        at_output = token.inside & first & (token.ahead == 0)
        bench.check(~at_output | (out == token.payload))
        bench.check(~token.inside | at_output | (second & (spare == token.payload)))
        gone.append(push)
    bench.check(dut.o.valid | ~full)
    bench.check(~(gone[0] & gone[1]))
    waits = (dut.lane.valid | dut.behind.valid) & dut.o.ready
    _check_progress(bench, waits, gone[0] | gone[1], 2)
    # While one waits, so many of the other go first, no more.
    turns = bench.tap("turns", lanes_behind.bit_length())
    for name, port, other, most in (
        ("lane", dut.lane, gone[0], lanes_behind),
        ("behind", dut.behind, gone[1], 1),
    ):
        passed = bench.register(range(lanes_behind + 2), f"{name}_passed")
        m.d.sync += passed.eq(Mux(port.valid & ~port.ready, passed + other, 0))
        bench.check(passed <= most)
        bench.check((passed == 0) | (passed + turns <= most if name == "lane" else turns != 0))
    bench.check(turns <= lanes_behind)
    return bench


def loader_bench(dut: wiring.Component) -> Bench:
    """Return the proof of an `ActivationLoader`, or of what should be one."""
    bench = Bench(dut)
    m, params = bench.m, dut.params
    for port in ("allow", "memory", "release", "cancel", "halted"):
        bench.drive(getattr(dut, port), port)
    bench.offer(dut.i, "i")
    take = dut.i.valid & dut.i.ready
    depth = params.activation_depth // params.activation_columns
    # What a beat belongs to: amid a packet, or amid one that was given up.
    amid = bench.register(1, "amid")
    given_up = bench.register(1, "given_up")
    with m.If(take):
        m.d.sync += amid.eq(~dut.i.payload.last)
    with m.If(dut.cancel):
        m.d.sync += given_up.eq(amid)
    with m.Elif(take & dut.i.payload.last):
        m.d.sync += given_up.eq(0)
    # Written once, in the next cycle, or not at all.
    written = dut.write.enable.any()
    bench.check(~written | dut.write.enable.all())
    bench.check(~bench.past(take & ~given_up & ~dut.halted) | written)
    bench.check(~written | bench.past(take & ~given_up))
    # Its columns in reverse, at the highest address that is still free.
    count = len(dut.write.activations)
    batch = params.batch
    word = bench.past(dut.i.payload.data)
    for place in range(count):
        column, vector = count // batch - 1 - place // batch, place % batch
        sent = word.word_select(column * batch + vector, 8)
        bench.check(~written | (dut.write.activations[place].as_unsigned() == sent))
    cancelled = bench.past(dut.cancel)
    address = depth - dut.beats
    bench.check(~written | cancelled | (dut.write.address == address))
    before = bench.past(dut.beats)
    dropped = bench.past(dut.release | dut.cancel)
    bench.check(~written | (dut.beats == before + 1))
    bench.check(written | (dut.beats == before) | (dropped & (dut.beats == 0)))
    bench.check(dut.beats <= depth)
    bench.check(~bench.past(dut.ended) | dut.ended | dropped)
    bench.check(~dut.ended | ~take)
    # Where it stands, in the order in which its states are numbered.
    idle, _, discard, hold = (bench.tap("fsm_state", 2) == number for number in range(4))
    bench.check(bench.tap("in_packet") == amid)
    bench.check(discard == given_up)
    bench.check(~given_up | amid)
    bench.check(~(idle | discard) | ((dut.beats == 0) & ~dut.ended))
    bench.check(~dut.ended | hold)
    bench.check(hold | (dut.beats != depth))
    # No lock-up: whatever it waits for has come.
    waits = dut.i.valid & dut.allow & dut.release & ~dut.cancel & ~dut.halted
    _check_progress(bench, waits, take, 4)
    return bench


def _queue_proof(depth: int, spare: int = 0) -> Proof:
    return Proof(
        f"Queue, depth {depth}" + (f", tells of {spare} free entries" if spare else ""),
        _FIFO,
        "induction",
        2,
        lambda: queue_bench(Queue(_PAYLOAD_BITS, depth, spare=spare), depth, spare),
    )


def _fanout_proof(depth: int) -> Proof:
    params = AcceleratorParams(
        name="formal",
        lanes=2,
        parser_bits=1,
        parser_cut=1,
        bus_bits=32,
        input_depth=depth,
        activation_depth=16,
        row_depth=16,
    )
    return Proof(
        f"Fanout, to two queues of depth {depth}",
        "every beat reaches every lane once and in order, and there is room for it; no lock-up",
        "induction",
        3,
        lambda: fanout_bench(FannedQueues(params)),
    )


def _gearbox_proof(lanes: int, parser_bits: int, parser_cut: int) -> Proof:
    params = _gearbox_params(lanes, parser_bits, parser_cut)
    return Proof(
        f"Gearbox, {params.beats_per_word} beats, {params.slots} slots",
        "stable until ready, all beats in order and marked, no lock-up",
        "induction",
        2,
        lambda: gearbox_bench(Gearbox(params)),
    )


def _readout_proof(lanes_behind: int) -> Proof:
    params = AcceleratorParams(
        name="formal",
        lanes=4,
        parser_bits=1,
        parser_cut=1,
        bus_bits=32,
        weight_bits=2,
        activation_depth=16,
        row_depth=16,
    )
    return Proof(
        f"ReadoutNode, {lanes_behind} lanes behind",
        "stable until ready, FIFO of either side, turns, no lock-up",
        "induction",
        2,
        lambda: readout_bench(ReadoutNode(params, lanes_behind), lanes_behind),
    )


def _loader_proof(columns: int, batch: int) -> Proof:
    params = AcceleratorParams(
        name="formal",
        lanes=1,
        parser_bits=1,
        parser_cut=1,
        bus_bits=32,
        batch=batch,
        activation_columns=columns,
        activation_depth=16,
        row_depth=16,
    )
    return Proof(
        f"ActivationLoader, {columns} columns, batch {batch}",
        "every beat written once in its place, no lock-up",
        "induction",
        4,
        lambda: loader_bench(ActivationLoader(params)),
    )


STREAM_PROOFS = (
    Proof("ElasticBuffer", _FIFO, "induction", 2, lambda: elastic_bench(ElasticBuffer(4))),
    *(_queue_proof(depth) for depth in (2, 4, 16)),
    *(_queue_proof(depth, FANOUT_SPARE) for depth in (4, 16)),
    *(_fanout_proof(depth) for depth in (4, 16)),
    _gearbox_proof(1, 4, 2),
    _gearbox_proof(2, 8, 1),
    _gearbox_proof(4, 8, 2),
    _readout_proof(1),
    _readout_proof(3),
    _loader_proof(1, 1),
    _loader_proof(4, 2),
)
"""Proofs of this module."""
