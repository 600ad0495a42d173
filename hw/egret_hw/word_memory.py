"""Memory written by whole bus words and read by entry."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["WordMemory"]


class WordMemory(wiring.Component):
    """Table that loads at bus rate: a word in a cycle, an entry out.

    Latency of a read 2 enabled cycles, throughput 1 read an enabled cycle.

    Parameters
    ----------
    word_bits : int
        Width of a word written.
    entry_bits : int
        Width of an entry; divides `word_bits`.
    entries : int
        Entries held; a power of two, at least two words.

    Attributes
    ----------
    write : In(1)
        Write `word` at word `word_address`.
    word_address, word
        The write.
    enable : In(1)
        Advance the read.
    address : In
        Entry to read.
    entry : Out(entry_bits)
        The entry whose address was given two enabled cycles before.
    """

    def __init__(self, word_bits: int, entry_bits: int, entries: int) -> None:
        if word_bits % entry_bits:
            raise ValueError(f"entry_bits must divide word_bits = {word_bits}, not {entry_bits!r}")
        self.entry_bits = entry_bits
        self.per_word = word_bits // entry_bits
        self.words = entries // self.per_word
        if self.words < 2:
            raise ValueError(f"entries must fill two words of {self.per_word}, not {entries!r}")
        super().__init__(
            {
                "write": In(1),
                "word_address": In((self.words - 1).bit_length()),
                "word": In(word_bits),
                "enable": In(1),
                "address": In((entries - 1).bit_length()),
                "entry": Out(entry_bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the gates."""
        m = Module()
        m.submodules.memory = memory = Memory(shape=self.word.shape(), depth=self.words, init=[])
        write, read = memory.write_port(), memory.read_port()
        select_bits = self.per_word.bit_length() - 1
        select = Signal(max(1, select_bits))
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.word_address),
            write.data.eq(self.word),
            read.en.eq(self.enable),
            read.addr.eq(self.address[select_bits:]),
        ]
        with m.If(self.enable):
            m.d.sync += [
                select.eq(self.address[:select_bits]),
                self.entry.eq(read.data.word_select(select, self.entry_bits)),
            ]
        return m
