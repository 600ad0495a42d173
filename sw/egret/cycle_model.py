"""The accelerator as queues and stages: how long packets take, cycle by cycle.

It follows what moves through the hardware (docs/hardware.md), not the numbers: which blocks of bits
hold how many non-zeros, how many rows end between them, and what waits for what. The streams never
pause: words and activations are always there, and results are taken at once.
"""

from typing import Any

import numpy as np
from numba import njit

from egret.params import FANOUT_SPARE

__all__ = ["FIELDS", "decode_substream", "run_cycles"]

FIELDS = (
    "is_matrix",
    "is_code",
    "is_bias",
    "header_words",
    "section_entries",
    "section_words",
    "entries_per_word",
    "payload_words",
    "loads",
    "keeps",
    "more",
    "load_beats",
    "bank",
    "result_beats",
)
"""Columns of the table of packets that `run_cycles` takes."""
(
    _IS_MATRIX,
    _IS_CODE,
    _IS_BIAS,
    _HEADER,
    _ENTRIES,
    _SECTION,
    _PER_WORD,
    _PAYLOAD,
    _LOADS,
    _KEEPS,
    _MORE,
    _LOAD_BEATS,
    _BANK,
    _BEATS,
) = range(len(FIELDS))

# Latencies of the hardware's components, in cycles: the registers on the way, as the components'
# own docstrings tell them. tests/test_estimate.py measures them, all together: with one lane, a
# component whose latency is not that of below makes every matrix wrong by the difference.
_PARSER = 2
"""`parser`, `microcode`: from a beat to its marks, besides one for each slot."""
_COLLECTOR = 4
"""`collector`: from marks to a block."""
_OPENING = 1
"""`positioner`: from a matrix's first task that waits and may go on, until it is taken."""
_POSITIONER = 2
"""`positioner`: from a task to the operation."""
_MAC = 5
"""`mac`: from an operation to the sum beside the register that offers it."""
_ROW_STORE = 3
"""`row_store`: from a sum that is taken until it is stored."""
_DEALER = 2
"""`dealer`: from an entry's turn to its write."""
_BROADCAST = 1
"""`accelerator`: from the dealer's writes to those in the lanes."""
_PLACED = 1
"""`accelerator`: from the last start in the lanes to the tracker."""
_SETTLE = 3
"""`tracker`: from the last sum until errors are looked at, but for the first cycle."""
_FINISHER = 8
"""`finisher`: what a job takes besides its beats."""
_SERIAL_FINISHER = 6
"""`finisher` with a serial requantiser: the same in results, and a cycle."""
_WRITER = 1034
"""`microcode`: what its writer takes."""
_SECTIONS = 4
"""`dealer`: sections that may wait."""

_HEAD, _CHECK, _CHECKED, _BODY, _PAY, _CRC = range(6)
_WAIT, _SETTLING, _JUDGE = range(3)
_IDLE, _FILL, _HOLD = range(3)
_NOTHING, _TASK, _FLUSH = range(3)
_MATRIX_STARTS, _CODE_ENTRIES = 1, 2


@njit(cache=True, nogil=True)
def decode_substream(
    bits: Any,
    width: Any,
    suffixes: Any,
    offsets: Any,
    lasts: Any,
    golombs: Any,
    run_form: Any,
    dense: Any,
    column: Any,
    columns: Any,
    limit: Any,
    passes: Any,
    tasks: Any,
    ends: Any,
) -> Any:
    """Find out what every block of a substream asks of its lane.

    Parameters
    ----------
    bits : ndarray of uint8, shape (n,)
        The substream, one bit an item.
    width : int
        Bits of a block.
    suffixes, offsets : ndarray of int64, shape (2, CLASSES)
        Suffix bits and offsets of the level table and of the run table.
    lasts, golombs : ndarray of int64, shape (2,)
        Last class of each, and whether it is an exp-Golomb code.
    run_form, dense : bool
        Of the code.
    column, columns : int
        Column of the first weight; those of the matrix.
    limit : int
        Number of skipped weights from which on a block goes on without an event.
    passes : ndarray of uint8, shape (blocks,)
        Filled with whether a block waits for the multiplier.
    tasks : ndarray of int64, shape (blocks,)
        Filled with its tasks.
    ends : ndarray of int64, shape (n + blocks,)
        Filled, task by task, with the rows that end before it, or -1 for the end of the substream.

    Returns
    -------
    int
        Number of tasks.
    """
    position = column - 1 - columns
    table = 1 if run_form else 0
    zeros = 0
    left = -1
    suffix = 0
    skipped = 0
    count = 0
    blocks = bits.size // width
    for block in range(blocks):
        before = skipped
        first = count
        for place in range(block * width, (block + 1) * width):
            bit = bits[place]
            if left < 0 and lasts[table] == 0 and not golombs[table]:
                # A lone class has no bit before its suffix.
                left = suffixes[table, 0]
            if left >= 0:
                suffix = 2 * suffix + bit
                left -= 1
            elif bit:
                left = suffixes[table, zeros]
            else:
                zeros += 1
                if zeros == lasts[table] and not golombs[table]:
                    left = suffixes[table, zeros]
            if left != 0:
                continue
            short = zeros == lasts[table] and not golombs[table]
            number = suffix + offsets[table, zeros]
            number += 0 if short else 1 << suffixes[table, zeros]
            zeros = 0
            left = -1
            suffix = 0
            if table == 1:
                skipped = number
            elif run_form or dense or number != 0:
                position += skipped + 1
                skipped = 0
                rows = 0
                while position >= 0:
                    position -= columns
                    rows += 1
                ends[count] = rows
                count += 1
            else:
                skipped += 1
            if run_form:
                table = 1 - table
        if block == blocks - 1:
            ends[count] = -1
            count += 1
        elif count == first and not run_form and before >= limit:
            position += skipped
            skipped = 0
            rows = 0
            while position >= 0:
                position -= columns
                rows += 1
            ends[count] = rows
            count += 1
        passes[block] = count > first
        tasks[block] = count - first
    return count


@njit(cache=True, nogil=True)
def run_cycles(
    packets: Any,
    lanes: Any,
    slots: Any,
    input_depth: Any,
    block_depth: Any,
    word_depth: Any,
    beats_per_word: Any,
    fanout: Any,
    microcode: Any,
    result_cycles: Any,
    beat_parity: Any,
    beat_last: Any,
    passes: Any,
    blocks: Any,
    block_tasks: Any,
    block_ends: Any,
    ends: Any,
    ends_first: Any,
    retired: Any,
) -> Any:
    """Run packets through the accelerator.

    Parameters
    ----------
    packets : ndarray of int64, shape (packets, len(FIELDS))
        The packets in order, see `FIELDS`.
    lanes, slots : int
        Lanes, and substreams of each.
    input_depth, block_depth, word_depth : int
        Entries of a lane's queues of beats and of blocks, and of the queue of section words.
    beats_per_word : int
        Beats in a bus word.
    fanout : bool
        Beats pass a register on their way to the lanes, whose room is asked for in advance.
    microcode : bool
        Codes are made into microcode.
    result_cycles : int
        Cycles that the requantiser takes for a result.
    beat_parity : ndarray of int64, shape (beats,)
        Parity of the matrix of each beat, counted over all matrices.
    beat_last : ndarray of uint8, shape (beats,)
        Whether each beat is its matrix's last one.
    passes : ndarray of uint8, shape (lanes, beats)
        Whether the block of each beat waits for the multiplier.
    blocks, block_tasks, block_ends : ndarray of int64, shape (lanes, blocks + 1)
        Beat of each block that does, its tasks, and where these begin in `ends`.
    ends : ndarray of int64
        Tasks of all lanes as of `decode_substream`, those of a lane in the order of its blocks.
    ends_first : ndarray of int64, shape (lanes,)
        Where each lane's begin.
    retired : ndarray of int64, shape (matrices,)
        Filled with the cycle in which each matrix ended.

    Returns
    -------
    int
        Cycles in which a packet was under way.
    """
    count = packets.shape[0]
    substreams = lanes * slots
    # Reader.
    state = _HEAD
    packet = 0
    words = 0
    head = 0
    matrices = 0
    # What the reader is told of the tracker, of codes and their banks, and of the finisher is a
    # cycle old.
    was_free = True
    was_loadable = True
    was_idle = True
    # Dealer: sections that wait, and what it sent some cycles ago.
    section_count = 0
    sections = np.zeros((_SECTIONS + 1, 4), np.int64)
    fifo_inner = 0
    fifo_out = False
    entry = 0
    number = 0
    in_lanes = _DEALER + _BROADCAST
    in_tracker = in_lanes + _PLACED
    starts = np.full((in_tracker + 1, 2), -1, np.int64)
    code_ends = np.zeros(_DEALER + 1, np.int64)
    codes = 0
    was_coding = False
    writer = 0
    may_send = True
    banks_used = np.zeros(2, np.int64)
    # Gearbox, and what is between it and the lanes.
    gear_left = 0
    had_room = True
    beat_on_way = False
    # Tracker, by parity.
    busy = np.zeros(2, np.int64)
    passed = np.zeros(2, np.int64)
    placed = np.zeros(2, np.int64)
    wanted = np.zeros(2, np.int64)
    keeps = np.zeros(2, np.int64)
    more = np.zeros(2, np.int64)
    needed = np.zeros(2, np.int64)
    memory = np.zeros(2, np.int64)
    beats = np.zeros(2, np.int64)
    go = np.zeros(2, np.int64)
    code_bank = np.zeros(2, np.int64)
    row_bank = np.zeros(2, np.int64)
    matrix = np.zeros(2, np.int64)
    memory_now = 0
    bank_now = 0
    kept = 0
    tail = 0
    judge = _WAIT
    settle = 0
    # Finisher: cycles left, and what it works on.
    finish_left = 0
    finish_keeps = 0
    finish_bank = 0
    # Activation loader: packets that come, those used, and beats of the present one.
    loads = packets[packets[:, _LOADS] != 0, _LOAD_BEATS]
    # It waits for the first packet, whose first beat it takes while the first word passes a buffer.
    load_packet = 0
    load_beats = 1 if loads.size else 0
    loader = _HOLD if loads.size and loads[0] == 1 else _FILL
    # Row store: last sums on their way.
    store_lasts = np.full(_ROW_STORE, -1, np.int64)
    ended = np.zeros(2, np.int64)
    # Read-out: each link's sum and spare one, of parity and whether it is the last.
    node_valid = np.zeros(lanes + 1, np.int64)
    node_spare = np.zeros(lanes + 1, np.int64)
    node_sums = np.zeros((lanes + 1, 2, 2), np.int64)
    turns = np.zeros(lanes, np.int64)
    leaves = np.zeros(lanes + 1, np.int64)
    from_lane = np.zeros(lanes, np.int64)
    # Lanes: queue of beats, front, queue of blocks, extractor, positioner, products, sum.
    ring = slots + 1
    depth = slots + _PARSER + _COLLECTOR
    in_level = np.zeros(lanes, np.int64)
    in_valid = np.zeros(lanes, np.int64)
    in_beat = np.zeros(lanes, np.int64)
    amid = np.zeros(lanes, np.int64)
    # 1 for a block that is not seen behind, 2 for one that is.
    pipe = np.zeros((lanes, depth), np.int64)
    block_level = np.zeros(lanes, np.int64)
    block_valid = np.zeros(lanes, np.int64)
    block_next = np.zeros(lanes, np.int64)
    taken = np.zeros(lanes, np.int64)
    held = np.zeros(lanes, np.int64)
    task = np.zeros(lanes, np.int64)
    task_of = np.zeros((lanes, 2), np.int64)
    lane_loading = np.ones(lanes, np.int64)
    lane_placed = np.zeros(lanes, np.int64)
    load_slot = np.zeros(lanes, np.int64)
    opening = np.full(lanes, _OPENING, np.int64)
    # Kind, rows that end before, parity; the last stage is at work.
    staged = np.zeros((lanes, _POSITIONER, 3), np.int64)
    products = np.full((lanes, _MAC, 2), -1, np.int64)
    full = np.zeros(lanes, np.int64)
    sums = np.zeros((lanes, 2), np.int64)
    cycles = 0
    while packet < count or busy[0] or busy[1] or finish_left > 0:
        cycles += 1
        for stage in range(in_tracker, 0, -1):
            starts[stage] = starts[stage - 1]
        starts[0] = -1
        for stage in range(_DEALER, 0, -1):
            code_ends[stage] = code_ends[stage - 1]
        code_ends[0] = 0

        # What moves in this cycle, seen from registers.
        store_takes = node_valid[0]
        leaves[0] = store_takes
        for lane in range(lanes):
            room = not node_spare[lane]
            mine = full[lane] and (turns[lane] == 0 or not node_valid[lane + 1])
            from_lane[lane] = mine and room
            leaves[lane + 1] = node_valid[lane + 1] and room and not mine
        all_ready = True
        spare = FANOUT_SPARE if fanout else 1
        for lane in range(lanes):
            # Two entries are a buffer whose level counts the one that is offered.
            level = in_level[lane] + (in_valid[lane] if input_depth == 2 else 0)
            all_ready = all_ready and level + spare <= input_depth
        beat_arrives = beat_on_way
        if fanout:
            had_room, all_ready = all_ready, had_room
        beat_moves = gear_left > 0 and all_ready
        beat_on_way = beat_moves
        if not fanout:
            beat_arrives = beat_moves
        gear_ready = gear_left == 0 or (gear_left == 1 and all_ready)

        # Row store.
        ended_parity = store_lasts[_ROW_STORE - 1]
        for stage in range(_ROW_STORE - 1, 0, -1):
            store_lasts[stage] = store_lasts[stage - 1]
        store_lasts[0] = -1
        if store_takes and node_sums[0, 0, 1]:
            store_lasts[0] = node_sums[0, 0, 0]

        # Read-out, from the row store on.
        for lane in range(lanes):
            comes = from_lane[lane] or leaves[lane + 1]
            if from_lane[lane]:
                turns[lane] = lanes - 1 - lane
            elif comes and turns[lane] > 0:
                turns[lane] -= 1
            if not node_valid[lane] or leaves[lane]:
                if node_spare[lane]:
                    node_sums[lane, 0] = node_sums[lane, 1]
                    node_valid[lane] = 1
                    node_spare[lane] = 0
                else:
                    node_valid[lane] = comes
                    if comes:
                        node_sums[lane, 0] = (
                            sums[lane] if from_lane[lane] else node_sums[lane + 1, 0]
                        )
            elif comes:
                node_spare[lane] = 1
                node_sums[lane, 1] = sums[lane] if from_lane[lane] else node_sums[lane + 1, 0]

        # Lanes, from the back.
        for lane in range(lanes):
            ends_row = products[lane, _MAC - 1, 0] >= 0
            enable = not (ends_row and full[lane])
            emitting = staged[lane, _POSITIONER - 1, 1] > 0
            advance = enable and not emitting
            comes = held[lane] and advance and opening[lane] == 0
            flushes = comes and ends[task[lane]] < 0
            load = lane_loading[lane] and lane_placed[lane] and advance
            if ends_row and not full[lane]:
                full[lane] = 1
                sums[lane] = products[lane, _MAC - 1]
            elif from_lane[lane]:
                full[lane] = 0
            if enable:
                for stage in range(_MAC - 1, 0, -1):
                    products[lane, stage] = products[lane, stage - 1]
                products[lane, 0] = -1
                if emitting or staged[lane, _POSITIONER - 1, 0] == _FLUSH:
                    products[lane, 0, 0] = staged[lane, _POSITIONER - 1, 2]
                    products[lane, 0, 1] = not emitting
                if emitting:
                    staged[lane, _POSITIONER - 1, 1] -= 1
            if advance:
                for stage in range(_POSITIONER - 1, 0, -1):
                    staged[lane, stage] = staged[lane, stage - 1]
                staged[lane, 0, 0] = _NOTHING
                staged[lane, 0, 1] = 0
                if comes:
                    staged[lane, 0, 0] = _FLUSH if flushes else _TASK
                    staged[lane, 0, 1] = 0 if flushes else ends[task[lane]]
                    staged[lane, 0, 2] = task_of[lane, 0]
                may_open = held[lane] and not lane_loading[lane] and go[task_of[lane, 0]]
                if may_open and opening[lane] > 0:
                    opening[lane] -= 1
            # Starts are placed in order, those of a lane after each other.
            if starts[in_lanes, 0] >= 0 and starts[in_lanes, 1] == lane * slots + slots - 1:
                lane_placed[lane] = 1
            if load:
                load_slot[lane] += 1
                if load_slot[lane] == slots:
                    load_slot[lane] = 0
                    lane_loading[lane] = 0
                    lane_placed[lane] = 0
            if flushes and task_of[lane, 1] == slots - 1:
                lane_loading[lane] = 1
                opening[lane] = _OPENING
            # The extractor: a block stays in its queue until its last task is taken.
            block_moves = False
            if not held[lane] or comes:
                held[lane] = block_valid[lane]
                if block_valid[lane]:
                    place = block_next[lane]
                    task[lane] = ends_first[lane] + block_ends[lane, place] + taken[lane]
                    task_of[lane, 0] = beat_parity[blocks[lane, place]]
                    task_of[lane, 1] = blocks[lane, place] % slots
                    taken[lane] += 1
                    block_moves = taken[lane] == block_tasks[lane, place]
            # What the queue of blocks saw before this cycle's changes.
            level = block_level[lane] + (block_valid[lane] if block_depth == 2 else 0)
            front = level < block_depth
            arrives = front and pipe[lane, depth - 1] > 1
            if block_moves:
                block_next[lane] += 1
                taken[lane] = 0
            if not block_valid[lane] or block_moves:
                block_valid[lane] = 0
                if block_level[lane] > 0:
                    block_level[lane] -= 1
                    block_valid[lane] = 1
                elif block_depth == 2 and arrives:
                    block_valid[lane] = 1
                    arrives = 0
            block_level[lane] += arrives
            # The front: a ring that stands still amid a matrix while no bits come, then stages.
            beat_taken = front and in_valid[lane]
            if front:
                for stage in range(depth - 1, ring - 1, -1):
                    pipe[lane, stage] = pipe[lane, stage - 1]
                if slots == 1 or pipe[lane, 0] or not amid[lane]:
                    for stage in range(ring - 1, 0, -1):
                        pipe[lane, stage] = pipe[lane, stage - 1]
                else:
                    pipe[lane, ring - 1] = 0
                pipe[lane, 0] = 1 + passes[lane, in_beat[lane]] if beat_taken else 0
            if beat_taken:
                amid[lane] = not beat_last[in_beat[lane]]
                in_beat[lane] += 1
            moves = beat_arrives
            if not in_valid[lane] or beat_taken:
                in_valid[lane] = 0
                if in_level[lane] > 0:
                    in_level[lane] -= 1
                    in_valid[lane] = 1
                elif input_depth == 2 and moves:
                    in_valid[lane] = 1
                    moves = False
            in_level[lane] += moves

        # Tracker.
        finishing = finish_left > 0
        retires = False
        begins = False
        if judge == _WAIT:
            settle = 0
            if busy[tail] and passed[tail] and ended[tail] == substreams and not wanted[tail]:
                judge = _SETTLING
        elif judge == _SETTLING:
            settle += 1
            if settle > _SETTLE:
                judge = _JUDGE
        elif more[tail] or not finishing:
            retires = True
            begins = not more[tail]
            judge = _WAIT
        load_memory = 1 - memory_now
        if wanted[tail]:
            load_memory = memory[tail]
        elif wanted[1 - tail]:
            load_memory = memory[1 - tail]
        any_wanted = wanted[0] or wanted[1]
        allow = any_wanted or not ((busy[0] and keeps[0]) or (busy[1] and keeps[1]) or kept)
        allow = allow and not (finishing and finish_keeps)
        release = False
        owner = -1
        for parity in range(2):
            if busy[parity] and not wanted[parity] and memory[parity] == load_memory:
                allow = False
            waits = (tail != parity and keeps[1 - parity]) or (
                finishing and (finish_keeps or finish_bank == row_bank[parity])
            )
            go[parity] = busy[parity] and placed[parity] and not wanted[parity] and not waits
            if (
                wanted[parity]
                and (tail == parity or not wanted[1 - parity])
                and loader == _HOLD
                and load_beats == needed[parity]
            ):
                owner = parity
                release = True
        if release:
            wanted[owner] = 0
        if loader == _IDLE:
            if allow and load_packet < loads.size:
                loader = _FILL
        elif loader == _FILL:
            load_beats += 1
            if load_beats == loads[load_packet]:
                loader = _HOLD
        elif release:
            loader = _IDLE
            load_beats = 0
            load_packet += 1
        if finishing:
            finish_left -= 1
        if begins:
            finish_left = beats[tail] + _FINISHER
            if result_cycles > 1:
                finish_left = (beats[tail] + _SERIAL_FINISHER) * result_cycles + 1
            finish_keeps = keeps[tail]
            finish_bank = row_bank[tail]
        may_allocate = was_free
        was_free = not busy[head] and (placed[1 - head] or not busy[1 - head])
        if starts[in_tracker, 0] >= 0 and starts[in_tracker, 1] == substreams - 1:
            placed[starts[in_tracker, 0]] = 1
        if ended_parity >= 0:
            ended[ended_parity] += 1
        bank_free = True
        banks_used[:] = 0
        for parity in range(2):
            banks_used[code_bank[parity]] |= busy[parity]
        coding = codes > 0 or was_coding or writer > 0
        may_load, may_load_bias = was_loadable, was_idle
        was_idle = not finishing and not begins
        was_loadable = not coding and not banks_used[packets[min(packet, count - 1), _BANK]]
        if retires:
            retired[matrix[tail]] = cycles
            busy[tail] = 0
            ended[tail] = 0
            tail = 1 - tail

        # Dealer.
        deals = section_count > 0 and fifo_out
        word_ends = False
        section_ends = False
        if deals:
            section_ends = number + 1 == sections[0, 0]
            word_ends = section_ends or entry + 1 == sections[0, 1]
            if sections[0, 2] == _MATRIX_STARTS:
                starts[0, 0] = sections[0, 3]
                starts[0, 1] = number
            elif sections[0, 2] == _CODE_ENTRIES and section_ends:
                code_ends[0] = 1
            entry = 0 if word_ends else entry + 1
            number = 0 if section_ends else number + 1
        section_room = section_count < _SECTIONS
        fifo_room = fifo_inner < word_depth - 1
        reads = fifo_inner > 0 and (not fifo_out or word_ends)
        if reads:
            fifo_out = True
            fifo_inner -= 1
        elif word_ends:
            fifo_out = False
        if section_ends:
            for place in range(_SECTIONS):
                sections[place] = sections[place + 1]
            section_count -= 1

        # Codes.
        sends = may_send and not coding
        may_send = not coding
        if microcode:
            if was_coding and codes == 0:
                writer = _WRITER
            elif writer > 0:
                writer -= 1
        was_coding = codes > 0
        if code_ends[_DEALER]:
            codes -= 1

        # Reader and gearbox.
        takes_payload = False
        if packet < count:
            if state == _HEAD:
                words += 1
                if words == packets[packet, _HEADER]:
                    state = _CHECK
            elif state == _CHECK:
                words = 0
                state = _CHECKED
            elif state == _CRC:
                if packets[packet, _IS_MATRIX]:
                    passed[head] = 1
                    head = 1 - head
                state = _HEAD
                packet += 1
            elif state == _PAY:
                if gear_ready and sends:
                    takes_payload = True
                    words += 1
                    if words == packets[packet, _PAYLOAD]:
                        words = 0
                        state = _CRC
            else:
                if state == _CHECKED and section_room:
                    if packets[packet, _IS_MATRIX]:
                        bank_free = may_allocate
                    elif packets[packet, _IS_BIAS]:
                        bank_free = may_load_bias
                    elif packets[packet, _IS_CODE]:
                        bank_free = may_load
                    if bank_free:
                        state = _BODY
                        sections[section_count, 0] = packets[packet, _ENTRIES]
                        sections[section_count, 1] = packets[packet, _PER_WORD]
                        sections[section_count, 2] = 0
                        if packets[packet, _IS_CODE]:
                            sections[section_count, 2] = _CODE_ENTRIES
                            codes += 1
                        if packets[packet, _IS_MATRIX]:
                            sections[section_count, 2] = _MATRIX_STARTS
                            sections[section_count, 3] = head
                            busy[head] = 1
                            passed[head] = placed[head] = 0
                            wanted[head] = packets[packet, _LOADS]
                            keeps[head] = kept = packets[packet, _KEEPS]
                            more[head] = packets[packet, _MORE]
                            needed[head] = packets[packet, _LOAD_BEATS]
                            memory[head] = memory_now ^ packets[packet, _LOADS]
                            memory_now = memory[head] ^ keeps[head]
                            beats[head] = packets[packet, _BEATS]
                            code_bank[head] = packets[packet, _BANK]
                            row_bank[head] = bank_now
                            bank_now ^= 1 - more[head]
                            matrix[head] = matrices
                            matrices += 1
                        section_count += 1
                if state == _BODY and fifo_room:
                    fifo_inner += 1
                    words += 1
                    if words == packets[packet, _SECTION]:
                        words = 0
                        state = _PAY if packets[packet, _IS_MATRIX] else _CRC
        if takes_payload:
            gear_left = beats_per_word
        elif beat_moves:
            gear_left -= 1
    return cycles
