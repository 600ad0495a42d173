"""Damage to containers that gets past their checksums."""

import json
import random
import struct
from collections.abc import Callable

import crc32c
from tests.handmade import random_book, random_container, safetensors, varint
from tests.independent_decoder import BadFile, Fields, read_safetensors

OFTEN = ("egret:index", "egret:books", "egret:code")
Bytes = Callable[[bytes], bytes]


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the tensors of a safetensors file lie; nothing when it is none."""
    try:
        read_safetensors(data)
    except BadFile:
        return {}
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return {
        name: (start + entry["data_offsets"][0], start + entry["data_offsets"][1])
        for name, entry in header.items()
    }


def repaired(data: bytes) -> bytes:
    """Return a container with every CRC right that can be found."""
    where = places(data)
    if "egret:index" not in where:
        return data
    file = bytearray(data)
    start, end = where["egret:index"]
    if end - start < 28:
        return data

    def put(at: int, content: bytes | bytearray) -> None:
        file[at : at + 4] = struct.pack("<I", crc32c.crc32c(bytes(content)))

    for own, offset in (("egret:books", 16), ("egret:network", 20)):
        if own in where:
            put(start + offset, file[slice(*where[own])])
    code = slice(*where["egret:code"]) if "egret:code" in where else slice(0, 0)
    for at, name, bits in _checksums(bytes(file[start : end - 4])):
        if name is not None:
            if name in where:
                put(start + at, file[slice(*where[name])])
            continue
        size = (bits + 7) // 8
        put(start + at, file[code.start : min(code.start + size, code.stop)])
        code = slice(min(code.start + size, code.stop), code.stop)
    put(end - 4, file[start : end - 4])
    return bytes(file)


def _checksums(index: bytes) -> list[tuple[int, str | None, int]]:
    """Return each CRC of the records: its place, the raw tensor or None, the chunk's bits."""
    found: list[tuple[int, str | None, int]] = []
    fields = Fields(index)
    fields.at = 8
    try:
        records, books = fields.number(4), fields.number(4)
        fields.at = 24
        for _ in range(min(books, len(index))):
            fields.varint()
        name = b""
        for _ in range(min(records, len(index))):
            kind = fields.number(1)
            name = name[: fields.varint()] + fields.take(fields.varint())
            if kind not in (0, 1):
                fields.varint()
                continue
            fields.take(1)
            size = 1
            for _ in range(fields.number(1)):
                size *= fields.varint()
            if kind == 0:
                found.append((fields.at, name.decode("utf-8", "replace"), 0))
                fields.take(4)
                continue
            fields.take(1)
            fields.varint()
            chunks = -(-size // max(1, fields.varint()))
            if 8 * chunks > len(index):
                break
            bits = [fields.number(4) for _ in range(chunks)]
            found += [(fields.at + 4 * number, None, bits[number]) for number in range(chunks)]
            fields.take(4 * chunks)
    except BadFile:
        pass
    return found


def rebuilt(data: bytes, changes: dict[str, bytes]) -> bytes:
    """Return a container whose own tensors have other bytes, in a new safetensors header."""
    tensors = []
    for name, stored in read_safetensors(data).items():
        content = changes.get(name, stored.data)
        same = len(content) == len(stored.data)
        tensors.append(
            (name, stored.dtype, stored.shape, content)
            if same
            else (name, "U8", [len(content)], content)
        )
    return safetensors(tensors)


def scribbled(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes of a string, or its length."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(changed) + 1)
        kind = rng.randrange(7)
        if kind == 0 or not changed:
            changed[at:at] = rng.randbytes(rng.choice([1, 1, 2, 8]))
        elif kind == 1:
            del changed[at : at + rng.choice([1, 1, 2, 8])]
        elif kind == 2 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and at < len(changed):
            changed[at] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 4:
            number = rng.choice([0, 1, 2**16, 2**16 + 1, 2**31, 2**60, 2**63 - 1, 2**64])
            changed[at : at + 1] = varint(number)
        elif kind == 5:
            changed[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 7, 8, 2**20, 2**32 - 1]))
        else:
            source = rng.randrange(len(changed))
            changed[at:at] = changed[source : source + rng.randrange(1, 9)]
    return bytes(changed)


def mutated(data: bytes, rng: random.Random, mutate: Bytes | None = None) -> bytes:
    """Return a damaged container.

    Parameters
    ----------
    data : bytes
        A container, or anything.
    rng : random.Random
        Decides what happens.
    mutate : Callable, optional
        The fuzzer's own way to change bytes.
    """

    def change(content: bytes) -> bytes:
        if mutate is not None and rng.random() < 0.5:
            return mutate(content)
        return scribbled(content, rng)

    draw = rng.random()
    if draw < 0.05:
        return random_container(rng)[0].file()
    where = places(data)
    own = [name for name in where if name.startswith("egret:")]
    if draw < 0.2 or "egret:index" not in own:
        return change(data)
    name = rng.choice([*own, *(one for one in OFTEN if one in own)])
    content = data[slice(*where[name])]
    if name == "egret:books" and draw > 0.7:
        result = rebuilt(data, {name: random_book(rng).data})
        index = bytearray(result[slice(*places(result)["egret:index"])])
        if index[12:16] == b"\1\0\0\0" and len(index) > 24 and index[24] < 128:
            # One codebook: give its new length.
            index[24:25] = varint(len(result[slice(*places(result)[name])]))
            result = rebuilt(result, {"egret:index": bytes(index)})
    else:
        result = rebuilt(data, {name: change(content)})
    return result if rng.random() < 0.05 else repaired(result)
