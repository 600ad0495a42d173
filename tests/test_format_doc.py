"""Chapter 2 of docs/format.md and `egret.image_format` say the same."""

import re
from pathlib import Path

from egret import image_format
from egret.image_format import DESCRIPTOR_WORDS, FIELDS, ErrorKind
from egret.params import MAX_ORDER, MULTIPLIER_BITS, SHIFT_BITS

DOCUMENT = Path(__file__).parent.parent / "docs" / "format.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
CHAPTER = TEXT[TEXT.index("## Chapter 2") :]


def table(heading: str) -> list[dict[str, str]]:
    """Return the first table after a heading of the chapter, a row as column name -> cell."""
    match = re.search(rf"^### {heading}\b.*?\n(\|.*?)\n(?!\|)", CHAPTER, re.MULTILINE | re.DOTALL)
    assert match is not None, f"no table under {heading!r} in {DOCUMENT.name}"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines()
    ]
    header, rule, *rows = lines
    assert all(set(cell) <= set("-:") for cell in rule)
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in rows]


def descriptor() -> dict[str, dict[str, str]]:
    return {row["field"]: row for row in table("Descriptor")}


def test_descriptor_fields() -> None:
    documented = {}
    for name, row in descriptor().items():
        high, _, low = row["bits"].partition(":")
        lsb = int(low or high)
        documented[name] = (int(row["word"]), lsb, int(high) - lsb + 1)
    expected = {name: (field.word, field.lsb, field.width) for name, field in FIELDS.items()}
    assert documented == expected
    assert list(documented) == list(FIELDS)


def test_descriptor_fields_do_not_overlap() -> None:
    used: dict[int, str] = {}
    for name, field in FIELDS.items():
        assert field.lsb + field.width <= 32, name
        for bit in range(field.offset, field.offset + field.width):
            assert bit not in used, f"{name} and {used[bit]} share bit {bit}"
            used[bit] = name
    assert max(used) < 32 * DESCRIPTOR_WORDS


def test_descriptor_constants() -> None:
    rows = descriptor()
    magic = image_format.IMAGE_MAGIC
    assert f"0x{magic:04X}" in rows["magic"]["meaning"]
    assert f"`{magic.to_bytes(2, 'little').decode()}`" in rows["magic"]["meaning"]
    assert rows["version"]["meaning"] == str(image_format.IMAGE_VERSION)
    assert f"{image_format.CODE_EG_K}: `eg-k`" in rows["code"]["meaning"]
    assert f"0 to {MAX_ORDER}" in rows["order"]["meaning"]
    assert FIELDS["multiplier"].width == MULTIPLIER_BITS
    assert FIELDS["shift"].width == SHIFT_BITS
    assert f"0 to {2**SHIFT_BITS - 1}" in rows["shift"]["meaning"]


def test_packet_sections() -> None:
    rows = {row["section"]: row["content"] for row in table("Packet")}
    assert list(rows) == ["descriptor", "map", "counts", "rows", "bias", "payload", "CRC"]
    assert rows["descriptor"].startswith(f"{image_format.DESCRIPTOR_BYTES} bytes")
    for section in ("map", "counts", "rows"):
        assert f"entries of {image_format.ENTRY_BITS} bits" in rows[section]
    assert f"0x{image_format.ROW_UNUSED:04X}" in rows["rows"]


def test_error_kinds() -> None:
    documented = {row["name"]: int(row["kind"]) for row in table("Errors")}
    assert documented == {kind.name: kind.value for kind in ErrorKind if kind is not ErrorKind.NONE}
    assert ErrorKind.NONE == 0
