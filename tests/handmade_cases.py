"""Containers that Egret's writer never makes: valid ones with what they hold, and invalid ones.

Codebooks and chunks stand here as the bits that chapter 1 of docs/format.md gives them, worked
out by hand where they are short.
"""

import json
import struct
from dataclasses import replace
from typing import Any

import crc32c
from tests.handmade import (
    MAX_VALUE,
    Container,
    Record,
    alias,
    coded,
    deal,
    golomb,
    number_set,
    pack_bits,
    raw,
    safetensors,
    shape_bytes,
    table,
    varint,
    word,
    zigzag,
)
from tests.independent_decoder import Tensor

EG0 = "00 000 00"  # eg-k, k = 0, zigzag
ZEROS = b"\0" * 8
# Members of the classes of 1, 2, 4, 8 and 16 symbols; the next takes the other nine.
FORTY_DEALT = [[39], [0, 20], [1, 2, 3, 5], [4, *range(6, 13)], [*range(13, 20), *range(21, 30)]]


def one(
    book: str, chunks: list[str], values: list[int], chunk: int = 65536
) -> tuple[Container, dict[str, Tensor]]:
    """A container of one tensor `w` of one axis."""
    container = Container([coded("w", [len(values)], chunks, chunk=chunk)], [pack_bits(book)])
    return container, {"w": Tensor("F32", (len(values),), values=values, step=0)}


def _valid() -> dict[str, tuple[Container, dict[str, Tensor]]]:
    cases = {
        # Indices 0 1 2 3 4 are the values 0 -1 1 -2 2.
        "eg-0, zigzag": one(EG0, ["1 010 011 00100 00101"], [0, -1, 1, -2, 2]),
        "eg-7, zigzag": one(
            "00 111 00",
            ["1 0000000 1 1111111 01 00000000 001 000000000"],
            [0, -64, 64, 192],
        ),
        "extreme values": one(
            EG0,
            [golomb(2**24 - 1) + golomb(2**24 - 2) + golomb(2**24 - 3)],
            [-MAX_VALUE - 1, MAX_VALUE, -MAX_VALUE],
        ),
        # In the run form number 0 is -1, number 1 is 1, the last is -2^23.
        "eg-run, zigzag": one(
            # Level code EG-0, run code EG-1. Runs 0, 2, 3 of EG-1 are 10, 0100, 0101.
            "01 000 001 00",
            ["10 1 0100 010 10 011", "0101"],
            [-1, 0, 0, 1, -2, 0, 0, 0],
            chunk=5,
        ),
        "eg-run, last number": one("01 000 000 00", ["1" + golomb(2**24 - 2)], [-MAX_VALUE - 1]),
        # Runs of a whole chunk, of a chunk less one, and none at the end.
        "runs at chunk ends": one(
            "01 000 000 00",
            ["00101", "00100 1", "1 1 00100"],
            [0, 0, 0, 0, 0, 0, 0, -1, -1, 0, 0, 0],
            chunk=4,
        ),
        # One class without suffix: EG-0 of 0 and of 0. The set is {6}, the value 3.
        "no bits at all": one(
            "10 1 1 01 000 000 010 00111 1", ["", ""], [3] * 70_000, chunk=65_536
        ),
        # Both codes without bits: every run is 0 and every level 1.
        "no bits in run form": one("11 11 11 01 000 000 010 010 1", [""], [1] * 9),
        # The run code has two symbols, 0 and 1, of one bit; the level code one of none.
        "run of one bit": one("11 11" + table(1) + "01 000 000 010 1 1", ["1 0 1"], [0, -1, -1, 0]),
        "fixed length": one(
            # One class of 3 suffix bits, zigzag map.
            "10 1 00100 00",
            ["000 111 100"],
            [0, -4, 2],
        ),
        # Classes of 1, 4 and 2 symbols: 1, 01xx, 00x.
        "three classes": one(
            "10 011 1 00101 010 00",
            ["1 01 00 01 11 00 0 00 1"],
            [0, -1, 2, -3, 3],
        ),
        "sixteen classes": one(
            "10" + table(*[0] * 16) + "00",
            [word([0] * 16, 15) + word([0] * 16, 14) + "1"],
            [-8, 7, 0],
        ),
        "suffix bits up and down": one(
            "10" + table(24, 0, 24) + "00",
            [word([24, 0, 24], 5) + word([24, 0, 24], 2**24 - 1)],
            [-3, -MAX_VALUE - 1],
        ),
        # Numbers 1, 2, 5 are the values -1, 1, -3.
        "set": one("00 000 01 000 000 011 010 010 010 1", ["1 010 011"], [-1, 1, -3]),
        "set with other orders": one(
            "00 000 01" + number_set([1, 2, 5], 3, 7), ["011 1"], [-3, -1]
        ),
        "the largest numbers": one(
            "00 000 01" + number_set([0, 2**24 - 2, 2**24 - 1]),
            ["011 1 010"],
            [-MAX_VALUE - 1, 0, MAX_VALUE],
        ),
        "set of 2^20": one(
            "00 111 01" + number_set(range(5, 5 + 2**20), 0, 7),
            [golomb(2**20 - 1, 7) + golomb(0, 7)],
            [(2**20 + 4) // 2, -3],
        ),
        "empty set": one("01 000 000 01 000 000 1", ["00110"], [0] * 5),
        # Members 0 2 4 6 8 (values 0 to 4), classes of 1, 2 and 4. The first takes 8, the second,
        # of 0 2 4 6 that are left, takes 0 and 6; the third what is left, 2 and 4.
        "ranked": one(
            "10"
            + table(0, 1, 2)
            + "10"
            + number_set([0, 2, 4, 6, 8])
            + "000 000 00101 1 1 1 010 1",
            ["1 01 0 01 1 00 00 00 01"],
            [4, 0, 3, 1, 2],
        ),
        # The second class takes a run of two after two that it skips.
        "ranked, a run": one(
            "10"
            + table(0, 1, 2)
            + "10"
            + number_set([0, 2, 4, 6, 8])
            + deal([[8], [4, 6]], [0, 2, 4, 6, 8], 2, 5),
            ["1 010 011 0000 0001"],
            [4, 2, 3, 0, 1],
        ),
        "ranked in run form": one(
            "01 000 000 10" + number_set([1, 3, 4]) + deal([[3]], [1, 3, 4]),
            # Numbers 3, 1, 4 are the values 2, 1 and -3.
            ["1 1 1 010 010 011"],
            [2, 1, 0, -3],
        ),
        "ranked, one class is enough": one(
            "10" + table(2, 0) + "10" + number_set([3, 9]) + "111 111", ["1 01"], [-5]
        ),
        "ranked, empty set": one("01 000 000 10 000 000 1 000 000", ["010"], [0]),
        "ranked, all classes of EG-0 that there are": one(
            "00 000 10" + number_set(range(40)) + deal(FORTY_DEALT, range(40)),
            ["1 010 011 00100 00111 0001000"],
            [-20, 0, 10, -1, -3, 2],
        ),
        "last chunk of one": one(EG0, ["1 010", "1 011", "010"], [0, -1, 0, 1, -1], chunk=2),
    }
    book = pack_bits(EG0)

    def tensor(
        shape: tuple[int, ...], values: list[int], dtype: str = "F32", step: int = 0
    ) -> Tensor:
        return Tensor(dtype, shape, values=values, step=step)

    cases |= {
        "nothing at all": (Container([]), {}),
        "books that nobody uses": (Container([], [book, book]), {}),
        "empty and 0-d": (
            Container(
                [
                    coded("", [0], []),
                    coded("a", [2**29, 0, 2**30], [], chunk=1),
                    coded("b", [], ["010"], step=64),
                    raw("c", "F32", (), b"\0\0\xc0\x3f"),
                    raw("d", "C64", (3, 0), b""),
                    coded("e", [1] * 32, ["011"], step=-64),
                ],
                [book],
            ),
            {
                "": tensor((0,), []),
                "a": tensor((2**29, 0, 2**30), []),
                "b": tensor((), [-1], step=64),
                "c": Tensor("F32", (), data=b"\0\0\xc0\x3f"),
                "d": Tensor("C64", (3, 0), data=b""),
                "e": tensor((1,) * 32, [1], step=-64),
            },
        ),
        "aliases": (
            Container(
                [
                    coded("a", [1], ["010"]),
                    alias("b", 0),
                    raw("c", "U8", (2,), b"xy"),
                    alias("d", 2),
                    alias("e", 0),
                ],
                [book],
            ),
            {
                "a": tensor((1,), [-1]),
                "b": tensor((1,), [-1]),
                "c": Tensor("U8", (2,), data=b"xy"),
                "d": Tensor("U8", (2,), data=b"xy"),
                "e": tensor((1,), [-1]),
            },
        ),
        "limits of the integer dtypes": (
            Container(
                [
                    coded("a", [2], [golomb(zigzag(-128)) + golomb(zigzag(127))], dtype="I8"),
                    coded("b", [2], [golomb(0) + golomb(zigzag(255))], dtype="U8"),
                    coded("c", [2], [golomb(zigzag(-32768)) + golomb(65534)], dtype="I16"),
                    coded("d", [2], [golomb(0) + golomb(zigzag(65535))], dtype="U16"),
                    coded("e", [1], [golomb(2**24 - 1)], dtype="I32"),
                ],
                [book],
            ),
            {
                "a": tensor((2,), [-128, 127], "I8"),
                "b": tensor((2,), [0, 255], "U8"),
                "c": tensor((2,), [-32768, 32767], "I16"),
                "d": tensor((2,), [0, 65535], "U16"),
                "e": tensor((1,), [-MAX_VALUE - 1], "I32"),
            },
        ),
        "roundings of the floating dtypes": (
            Container(
                [
                    # 2049 and 2051 lie between two F16, 257 and 259 between two BF16.
                    coded("a", [2], [golomb(2 * 2049) + golomb(2 * 2051)], dtype="F16"),
                    coded("b", [2], [golomb(2 * 257) + golomb(2 * 259)], dtype="BF16"),
                    # Multiples of 2^-24, the smallest F16, and below.
                    coded("c", [3], [golomb(6) + golomb(4) + golomb(2)], dtype="F16", step=26),
                    # 65519 is the largest that rounds to 65504.
                    coded("d", [1], [golomb(2 * 65519)], dtype="F16"),
                    coded("e", [1], [golomb(2**24 - 2)], dtype="F64", step=64),
                ],
                [book],
            ),
            {
                "a": tensor((2,), [2049, 2051], "F16"),
                "b": tensor((2,), [257, 259], "BF16"),
                "c": tensor((3,), [3, 2, 1], "F16", 26),
                "d": tensor((1,), [65519], "F16"),
                "e": tensor((1,), [MAX_VALUE], "F64", 64),
            },
        ),
        "network without bytes": (Container([], network=b""), {}),
        "network": (Container([], network=b"{}"), {}),
        "names that share nothing on purpose": (
            Container([raw(name, "U8", (0,), b"") for name in ("layer.1", "layer.10", "ä", "ö")]),
            {name: Tensor("U8", (0,), data=b"") for name in ("layer.1", "layer.10", "ä", "ö")},
        ),
        "names that share half a letter": (
            # ä and ö begin with the same byte.
            Container([raw("ä", "U8", (0,), b""), replace(raw("ö", "U8", (0,), b""), shared=1)]),
            {name: Tensor("U8", (0,), data=b"") for name in ("ä", "ö")},
        ),
        "a name of 65,535 bytes": (
            Container([raw("n" * 65535, "U8", (1,), b"x")]),
            {"n" * 65535: Tensor("U8", (1,), data=b"x")},
        ),
    }
    return cases


VALID = _valid()


def _invalid_parts() -> dict[str, Container]:
    """Containers with right CRCs and something else that is wrong."""
    eg0 = pack_bits(EG0)
    run = pack_bits("01 000 000 00")
    w = coded("w", [2], ["1 010"])

    def body(dtype: int = 0, axes: int = 1, rest: bytes = b"\2\0\0\1") -> Container:
        """One coded record `w` whose fields before the chunk's bits and CRC are given."""
        whole = bytes([dtype, axes]) + rest + struct.pack("<II", 4, crc32c.crc32c(b"\xa0"))
        return Container([Record(b"w", 1, whole, code=b"\xa0")], [eg0])

    def book(text: str, bits: str = "", size: int = 0) -> Container:
        return Container([coded("w", [size], [bits] if size else [])], [pack_bits(text)])

    good = Container([w], [eg0])
    two = "10" + table(0, 0)
    cases = {
        "magic": replace(good, magic=b"EGRU"),
        "version 0": replace(good, version=0),
        "version 3": replace(good, version=3),
        "version 258": replace(good, version=258),
        "unknown flag": replace(good, flags=2),
        "flag without network": replace(good, flags=1),
        "network without flag": replace(good, network=b"{}", flags=0),
        "network CRC without a network": replace(good, network_crc=1),
        "network CRC": replace(good, network=b"{}", network_crc=1),
        "one record too many": replace(good, record_count=2),
        "one record too few": replace(good, record_count=0),
        "2^32 - 1 records": replace(good, record_count=2**32 - 1),
        "one book too many": replace(good, book_count=2),
        "2^32 - 1 books": replace(good, book_count=2**32 - 1),
        "a book of 2^62 bytes": replace(good, book_sizes=[varint(2**62)]),
        "books of too many bytes": replace(good, book_sizes=[b"\2"]),
        "books of too few bytes": replace(good, books=[b"\0\0"], book_sizes=[b"\1"]),
        "book of no bytes": Container([coded("w", [0], [])], [b""]),
        "index goes on": replace(good, index_end=b"\0"),
        "code goes on": replace(good, code_end=b"\0"),
        "kind 3": Container([replace(w, kind=3)], [eg0]),
        "dtype 16": body(dtype=16),
        "coded U32": body(dtype=9),
        "coded BOOL": body(dtype=12),
        "integers with a step": body(dtype=4, rest=b"\2\1\0\1"),
        "33 axes": body(axes=33, rest=b"\2" + b"\1" * 32 + b"\0\0\1"),
        "255 axes": body(axes=255),
        "step 65": body(rest=b"\2\x41\0\1"),
        "step -65": body(rest=b"\2\xbf\0\1"),
        "step -128": body(rest=b"\2\x80\0\1"),
        "book 1 of 1": body(rest=b"\2\0\1\1"),
        "chunk 0": body(rest=b"\2\0\0\0"),
        "chunk 0 of an empty tensor": Container(
            [Record(b"w", 1, bytes([0, 1, 0, 0, 0, 0]))], [eg0]
        ),
        "book 1 of 1 for an empty tensor": Container(
            [Record(b"w", 1, bytes([0, 1, 0, 0, 1, 1]))], [eg0]
        ),
        "chunk 65537": body(rest=b"\2\0\0" + varint(65537)),
        "chunk 2^62": body(rest=b"\2\0\0" + varint(2**62)),
        "2^59 elements of 65536": body(rest=varint(2**59) + b"\0\0" + varint(65536)),
        "2^59 + 1 elements": body(rest=varint(2**59 + 1) + b"\0\0" + varint(65536)),
        "2^60 elements in chunks of 1": body(rest=varint(2**60) + b"\0\0\1"),
        "2^120 elements": body(axes=2, rest=varint(2**60) * 2 + b"\0\0\1"),
        "2^64 elements, wrapping to 0": body(axes=2, rest=varint(2**32) * 2 + b"\0\0\1"),
        "2^61 elements but for an empty axis": Container(
            [Record(b"w", 1, b"\0\2" + varint(2**61) + b"\0\0\0\1")], [eg0]
        ),
        "axis varint too long": body(rest=b"\x82\0\0\0\1"),
        "book varint too long": body(rest=b"\2\0\x80\0\1"),
        "chunk varint too long": body(rest=b"\2\0\0\x82\0"),
        "varint of 2^63": body(rest=b"\xff" * 8 + b"\xff\1" + b"\0\0\1"),
        "varint without end": body(rest=b"\xff" * 20),
        "varint of 2^64": body(rest=varint(2**64) + b"\0\0\1"),
        "shared beyond the previous name": Container([replace(w, shared=1)], [eg0]),
        "a name that says more than there is": Container(
            [Record(b"", 1, b"")], index_end=b"\0\0" + varint(2**40)
        ),
        "a name of 65,536 bytes": Container([raw("n" * 65536, "U8", (0,), b"")]),
        "names out of order": Container([replace(w, name=b"b"), replace(w, name=b"a")], [eg0]),
        "a name twice": Container([w, w], [eg0]),
        "the empty name twice": Container([replace(w, name=b""), replace(w, name=b"")], [eg0]),
        "a name that is no UTF-8": Container([replace(w, name=b"\xc3")], [eg0]),
        "a surrogate in a name": Container([replace(w, name=b"\xed\xa0\x80")], [eg0]),
        "an overlong letter in a name": Container([replace(w, name=b"\xc0\xaf")], [eg0]),
        "a coded tensor egret:x": Container([replace(w, name=b"egret:x")], [eg0]),
        "a coded tensor egret:index": Container([replace(w, name=b"egret:index")], [eg0]),
        "a raw tensor egret:x": Container([raw("egret:x", "U8", (1,), b"x")]),
        "a coded tensor __metadata__": Container([replace(w, name=b"__metadata__")], [eg0]),
        "an alias __metadata__": Container(
            [replace(w, name=b"A"), alias("__metadata__", 0)], [eg0]
        ),
        "alias of itself": Container([alias("a", 0)]),
        "alias of a later one": Container([alias("a", 1), w], [eg0]),
        "alias of an alias": Container(
            [replace(w, name=b"a"), alias("b", 0), alias("c", 1)], [eg0]
        ),
        "alias of 2^62": Container([w, alias("x", 2**62)], [eg0]),
        "alias with a tensor in the file": Container(
            [w, replace(alias("x", 0), raw=("U8", (1,), b"x"))], [eg0]
        ),
        "coded with a tensor in the file": Container([replace(w, raw=("F32", (2,), ZEROS))], [eg0]),
        "raw without a tensor in the file": Container(
            [replace(raw("w", "F32", (2,), ZEROS), raw=None)]
        ),
        "raw of another dtype": Container(
            [replace(raw("w", "F32", (2,), ZEROS), raw=("I32", (2,), ZEROS))]
        ),
        "raw of another shape": Container(
            [replace(raw("w", "F32", (2,), ZEROS), raw=("F32", (2, 1), ZEROS))]
        ),
        "raw of too many elements": Container(
            [Record(b"w", 0, shape_bytes("U8", [2**61, 0]) + bytes(4), raw=("U8", (2**61, 0), b""))]
        ),
        "raw CRC": Container([replace(raw("w", "F32", (2,), ZEROS), raw=("F32", (2,), b"\1" * 8))]),
        # Codebooks.
        "map 3": book("00 000 11"),
        "a book with a byte too many": book(EG0 + "0 00000000"),
        "a book's filling": book(EG0 + "1"),
        "a book that ends in its table": book("10 00100 1"),
        "17 classes": book("10" + golomb(16) + golomb(0) + golomb(0) * 16 + "00"),
        "25 suffix bits": book("10 1" + golomb(25) + "00"),
        "25 suffix bits in class 1": book("10 010" + golomb(24) + golomb(2) + "00"),
        "-1 suffix bits": book("10 010" + golomb(0) + golomb(1) + "00"),
        "2^29 suffix bits": book("10 1" + "0" * 29 + "1" + "0" * 29 + "00"),
        "an EG-0 of 60 zeros": book("10" + "0" * 60 + "1" + "0" * 60 + "00"),
        "2^20 + 1 members": book("00 111 01" + number_set(range(2**20 + 1), 0, 7)),
        "a set beyond the numbers": book("00 000 01" + number_set([2**24])),
        "a run of the set beyond the numbers": book(
            "00 000 01" + number_set(range(2**24 - 2, 2**24 + 1))
        ),
        "a run form's set beyond the numbers": book("01 000 000 01" + number_set([2**24 - 1])),
        "2^28 pairs": book("00 000 01 000 000" + golomb(2**28)),
        "a set that ends early": book("00 000 01 000 000 00100 1 1"),
        "three members for two symbols": book(two + "01" + number_set([0, 1, 2])),
        "three members for two symbols, ranked": book(
            two + "10" + number_set([0, 1, 2]) + deal([[0], [1]], [0, 1, 2])
        ),
        "a class takes what is not there": book(
            "10" + table(0, 1) + "10" + number_set([0, 1, 2]) + "000 000 00100 1"
        ),
        "a class takes more than it holds": book(
            "10" + table(0, 1) + "10" + number_set([0, 1, 2]) + "000 000 1 010"
        ),
        "a class takes a run beyond the members": book(
            "10" + table(1, 1) + "10" + number_set([0, 1, 2]) + "000 000 011 010"
        ),
        "a deal that ends early": book(
            "10" + table(0, 1) + "10" + number_set(range(3), 0, 0) + "000 000"
        ),
        # Codewords.
        "too few bits": book(EG0, "1 01", 2),
        "too many bits": book(EG0, "1 1 1", 2),
        "a filling bit": Container(
            [
                Record(
                    b"w",
                    1,
                    b"\0\1\2\0\0\2" + struct.pack("<II", 4, crc32c.crc32c(b"\xa1")),
                    code=b"\xa1",
                )
            ],
            [eg0],
        ),
        "number beyond the values": book(EG0, golomb(2**24), 1),
        "largest symbol of EG-0": book(EG0, golomb(2**29 - 2), 1),
        "29 zeros in EG-0": book(EG0, golomb(2**29 - 1), 1),
        "22 zeros in EG-7": book("00 111 00", "0" * 22 + "1" + "0" * 29, 1),
        "hundreds of zeros": book(EG0, "0" * 300 + "1" + "0" * 300, 1),
        "only zeros": book(EG0, "0" * 4000, 1),
        "number beyond the values of the run form": Container(
            [coded("w", [1], ["1" + golomb(2**24 - 1)])], [run]
        ),
        "index beyond the set": book("00 000 01" + number_set([3, 4]), "011", 1),
        "index beyond a ranked set": book(
            "00 000 10" + number_set([3, 4]) + deal([[4]], [3, 4]), "011", 1
        ),
        "index into an empty set": book("00 000 01 000 000 1", "1", 1),
        "a table's symbol beyond the set": book("10" + table(2) + "01" + number_set([3]), "01", 1),
        "a run beyond its chunk": Container([coded("w", [2], ["00100"])], [run]),
        "a run into the next chunk": Container(
            [coded("w", [4], ["00100", "010 1"], chunk=2)], [run]
        ),
        "a run one beyond its chunk, and a level": Container([coded("w", [2], ["00100 1"])], [run]),
        "a run one beyond each of four chunks": Container(
            [coded("w", [8], ["00100 1"] * 4, chunk=2)], [run]
        ),
        "a run one beyond a long chunk": Container(
            [coded("w", [2000], ["1 1" * 496 + "00110 1"] * 4, chunk=500)], [run]
        ),
        "a run of 2^28": Container([coded("w", [2], [golomb(2**28)])], [run]),
        "a level after the last run": Container([coded("w", [2], ["011 1"])], [run]),
        "an empty run after the last level": Container([coded("w", [2], ["010 1 1"])], [run]),
        "no bits for a run": Container([coded("w", [2], [""])], [run]),
        "128 in I8": Container([coded("w", [1], [golomb(256)], dtype="I8")], [eg0]),
        "-129 in I8": Container([coded("w", [1], [golomb(257)], dtype="I8")], [eg0]),
        "-1 in U8": Container([coded("w", [1], [golomb(1)], dtype="U8")], [eg0]),
        "256 in U8": Container([coded("w", [1], [golomb(512)], dtype="U8")], [eg0]),
        "32768 in I16": Container([coded("w", [1], [golomb(65536)], dtype="I16")], [eg0]),
        "-1 in U16": Container([coded("w", [1], [golomb(1)], dtype="U16")], [eg0]),
        "bits beyond the code": Container(
            [replace(coded("w", [1], ["1" * 80]), code=b"\xff")], [eg0]
        ),
        "2^32 - 1 bits": Container(
            [Record(b"w", 1, b"\0\1\1\0\0\1" + b"\xff" * 8, code=b"\xff")], [eg0]
        ),
    }
    swapped = coded("w", [4], ["1 010", "010 1"], chunk=2)
    cases["chunks swapped"] = Container(
        [replace(swapped, code=swapped.code[1:] + swapped.code[:1])], [eg0]
    )
    return cases


def _header(container: Container, **entries: object) -> bytes:
    """A container's file whose safetensors header is changed."""
    tensors = container.tensors()
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, shape, data in tensors:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [end, end + len(data)],
        }
        end += len(data)
    for name, entry in entries.items():
        name = name.replace("_", ":", 1)
        if entry is None:
            del header[name]
        elif isinstance(entry, dict) and name in header:
            header[name].update(entry)
        else:
            header[name] = entry
    return safetensors(tensors, json.dumps(header).encode())


def _invalid_files() -> dict[str, bytes]:
    """Files that are wrong in the safetensors part."""
    container = Container([coded("w", [2], ["1 010"])], [pack_bits(EG0)])
    file = container.file()
    text = file[8 : 8 + int.from_bytes(file[:8], "little")]
    data = file[8 + len(text) :]

    def with_header(header: bytes) -> bytes:
        return struct.pack("<Q", len(header)) + header + data

    def with_crc(place: int) -> bytes:
        """A byte of the data changed, so that a CRC no longer fits."""
        changed = bytearray(file)
        changed[8 + len(text) + place] ^= 0x10
        return bytes(changed)

    return {
        "nothing": b"",
        "seven bytes": file[:7],
        "header length alone": file[:8],
        "a header of 2^63 bytes": struct.pack("<Q", 2**63) + file[8:],
        "a header one byte longer": struct.pack("<Q", len(text) + 1) + file[8:],
        "a byte too many": file + b"\0",
        "a byte too few": file[:-1],
        "a blank before the header": with_header(b" " + text),
        "two headers": with_header(text + text),
        "a list": with_header(b"[]"),
        "an empty header": with_header(b""),
        "a header in UTF-16": with_header(text.decode().encode("utf-16-le")),
        "a header that is no UTF-8": with_header(text.replace(b"egret:code", b"egret:\xffode")),
        "deep lists": with_header(b'{"a":' + b"[" * 200_000),
        "deep and closed": with_header(b'{"a":' * 50_000 + b"0" + b"}" * 50_000),
        "a number of 5000 digits": with_header(text.replace(b"[0,", b"[" + b"9" * 5000 + b",", 1)),
        "an entry twice": with_header(
            text[:-1]
            + b', "egret:books": '
            + json.dumps(json.loads(text)["egret:books"]).encode()
            + b"}"
        ),
        "NaN for an offset": with_header(text.replace(b"[0,", b"[NaN,", 1)),
        "a fraction for an offset": with_header(text.replace(b"[0,", b"[0.0,", 1)),
        "true for a size": with_header(text.replace(b'"shape": [1]', b'"shape": [true]', 1)),
        "a negative size": with_header(text.replace(b'"shape": [1]', b'"shape": [-1]', 1)),
        "no entry": with_header(b'{"egret:index": null}'),
        "one key more": _header(container, egret_code={"x": 1}),
        "lower-case dtype": _header(container, egret_code={"dtype": "u8"}),
        "unknown dtype": _header(container, egret_code={"dtype": "F4"}),
        "dtype that is a list": _header(container, egret_code={"dtype": ["U8"]}),
        "I8 for the code": _header(container, egret_code={"dtype": "I8"}),
        "two axes for the code": _header(container, egret_code={"shape": [1, 1]}),
        "code without books": _header(container, egret_books=None),
        "an own tensor too many": _header(
            container, egret_x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        ),
        "a network that no flag tells of": _header(
            container, egret_network={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        ),
        "a tensor that no record tells of": _header(
            container, x={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        ),
        "a surrogate in the header": _header(
            container, **{"\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
        ),
        "overlapping tensors": _header(container, egret_books={"data_offsets": [0, 1]}),
        "an empty tensor within another": _header(
            container, x={"dtype": "U8", "shape": [0], "data_offsets": [5, 5]}
        ),
        "2^64 elements": _header(
            container, x={"dtype": "U8", "shape": [2**32, 2**32], "data_offsets": [0, 0]}
        ),
        "2^70 elements and none": _header(
            container, x={"dtype": "U8", "shape": [2**35, 2**35, 0], "data_offsets": [0, 0]}
        ),
        "33 axes in the header": _header(
            container, x={"dtype": "U8", "shape": [0] * 33, "data_offsets": [0, 0]}
        ),
        "offsets of 2^70": _header(container, egret_code={"data_offsets": [2**70, 2**70 + 1]}),
        "offsets backwards": _header(container, egret_code={"data_offsets": [1, 0]}),
        "three offsets": _header(container, egret_code={"data_offsets": [0, 0, 1]}),
        "index of no bytes": safetensors(
            [("egret:" + name, "U8", [0], b"") for name in ("index", "books", "code")]
        ),
        "index of 27 bytes": safetensors(
            [
                ("egret:index", "U8", [27], container.index()[:27]),
                ("egret:books", "U8", [0], b""),
                ("egret:code", "U8", [0], b""),
            ]
        ),
        "a safetensors file of another kind": safetensors([("w", "U8", [1], b"x")]),
        "no tensors": safetensors([]),
        "CRC of the index": with_crc(10),
        "CRC of the books": with_crc(len(container.index())),
        "CRC of the code": with_crc(len(container.index()) + 1),
        "index of another file": safetensors(
            [
                ("egret:index", "U8", [len(other := Container([]).index())], other),
                *container.tensors()[1:],
            ]
        ),
    }


def _invalid() -> dict[str, bytes]:
    cases = {name: container.file() for name, container in _invalid_parts().items()}
    files = _invalid_files()
    assert not set(cases) & set(files)
    return cases | files


INVALID = _invalid()
