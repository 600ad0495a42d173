"""Chapter 2 of docs/format.md, `egret.image_format` and `egret.params` say the same."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from egret import image_format
from egret.image_format import (
    CODE_FIELDS,
    ENTRY_FIELDS,
    HEADER_FIELDS,
    LOAD_FIELDS,
    MATRIX_FIELDS,
    ErrorKind,
    Field,
    PacketKind,
)
from egret.params import BIAS_BITS, CODE_NAMES, MAX_ORDER, MULTIPLIER_BITS, SHIFT_BITS

DOCUMENT = Path(__file__).parent.parent / "docs" / "format.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")
CHAPTER = TEXT[TEXT.index("## Chapter 2") :]
LAYOUTS: dict[str, Mapping[str, Field]] = {
    "Every header begins with": HEADER_FIELDS,
    "MAP and BIAS": LOAD_FIELDS,
    "CODE": CODE_FIELDS,
    "MATRIX": MATRIX_FIELDS,
}
"""Headers by the words that lead to their tables."""


def table(place: str) -> list[dict[str, str]]:
    """Return the first table of the chapter after a line, a row as column name -> cell."""
    match = re.search(rf"^{place}\n.*?\n(\|.*?)\n(?!\|)", CHAPTER, re.MULTILINE | re.DOTALL)
    assert match is not None, f"no table under {place!r} in {DOCUMENT.name}"
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in match[1].splitlines()
    ]
    header, rule, *rows = lines
    assert all(set(cell) <= set("-:") for cell in rule)
    assert all(len(row) == len(header) for row in rows)
    return [dict(zip(header, row, strict=True)) for row in rows]


def rows_of(layout: str) -> dict[str, dict[str, str]]:
    place = f"(?:.*{layout}|{layout}):"
    return {row["field"]: row for row in table(place)}


def place_of(row: dict[str, str]) -> Field:
    high, _, low = row["bits"].partition(":")
    lsb = int(low or high)
    return Field(int(row.get("word", "0")), lsb, int(high) - lsb + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_header_fields(layout: str) -> None:
    documented = {name: place_of(row) for name, row in rows_of(layout).items()}
    expected = dict(LAYOUTS[layout])
    if LAYOUTS[layout] is not HEADER_FIELDS:
        # The fields that all headers begin with are not repeated.
        for name, field in HEADER_FIELDS.items():
            assert expected.pop(name) == field
    assert documented == expected
    assert list(documented) == list(expected)


def test_entry_fields() -> None:
    rows = table(r".*Entry j holds:")
    assert {row["field"]: place_of(row) for row in rows} == ENTRY_FIELDS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fields_do_not_overlap(layout: str) -> None:
    used: dict[int, str] = {}
    for name, field in LAYOUTS[layout].items():
        assert field.lsb + field.width <= 32, name
        for bit in range(field.offset, field.offset + field.width):
            assert bit not in used, f"{name} and {used[bit]} share bit {bit}"
            used[bit] = name
    size = image_format.MATRIX_BYTES if layout == "MATRIX" else image_format.HEADER_BYTES
    assert max(used) < 8 * size


def test_header_constants() -> None:
    rows = rows_of("Every header begins with")
    magic = image_format.IMAGE_MAGIC
    assert f"0x{magic:04X}" in rows["magic"]["meaning"]
    assert f"`{magic.to_bytes(2, 'little').decode()}`" in rows["magic"]["meaning"]
    assert rows["version"]["meaning"] == str(image_format.IMAGE_VERSION)
    kinds = re.findall(r"(\d+) (\w+)", rows["kind"]["meaning"])
    assert {name: int(value) for value, name in kinds} == {
        kind.name: kind.value for kind in PacketKind
    }


def test_matrix_constants() -> None:
    rows = rows_of("MATRIX")
    assert MATRIX_FIELDS["multiplier"].width == MULTIPLIER_BITS
    assert MATRIX_FIELDS["shift"].width == SHIFT_BITS
    assert f"0 to {2**SHIFT_BITS - 1}" in rows["shift"]["meaning"]


def test_code_constants() -> None:
    last = CODE_FIELDS["level_last"]
    assert CODE_FIELDS["run_last"].width == last.width
    assert 1 << last.width == image_format.CLASSES
    assert f"order k (0 to {MAX_ORDER}, at most J)" in CHAPTER
    for name in CODE_NAMES:
        assert f"`{name}`" in CHAPTER


def test_packet_sections() -> None:
    sections: dict[str, list[str]] = {}
    for row in table("### Packet"):
        sections.setdefault(row["section"] or "entries", []).append(row["content"])
    assert list(sections) == ["header", "entries", "starts", "payload", "CRC"]
    (header,) = sections["header"]
    found = [int(number) for number in re.findall(r"\d+", header)]
    assert found == [image_format.MATRIX_BYTES, image_format.HEADER_BYTES]
    entry = f"entries of {image_format.ENTRY_BITS} bits"
    maps, biases, codes = sections["entries"]
    assert entry in maps
    assert f"entries of {BIAS_BITS} bits" in biases
    assert f"{2 * image_format.CLASSES} {entry}: the level table's {image_format.CLASSES}" in codes
    assert f"in {image_format.ENTRY_BITS} bits" in CHAPTER  # a narrow start


def test_error_kinds() -> None:
    documented = {row["name"]: int(row["kind"]) for row in table("### Errors")}
    assert documented == {kind.name: kind.value for kind in ErrorKind if kind is not ErrorKind.NONE}
    assert ErrorKind.NONE == 0


def test_crc_is_that_of_chapter_1() -> None:
    assert f"polynomial 0x{image_format.CRC_POLYNOMIAL:08X}" in TEXT
    assert image_format.CRC_BITS == 32
