"""The register map, and what is written from it: Markdown, C header, Python module."""

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from egret.errors import EgretError
from egret.image_format import IMAGE_VERSION, ErrorKind
from egret.params import PRESETS, AcceleratorParams
from egret_hw.register_text import c_header, markdown, python_module
from egret_hw.registers import (
    ADDRESS_BITS,
    REGISTERS,
    Kind,
    decode_params,
    package_version,
    register_named,
)
from egret_hw.rtl import top_name

# What programs out there rely on: a register keeps its offset.
OFFSETS = """
    000 ID  004 VERSION  008 CONTROL  00c STATUS  010 ERROR  014 POSITION  018 SCRATCH
    040 MATRICES  044 CYCLES  048 WORDS  04c STALLS  050 STARVED  054 MULTIPLIES  058 WEIGHTS
    05c PAYLOAD_WORDS
    080 PARAM_LANES  084 PARAM_PARSER_BITS  088 PARAM_PARSER_CUT  08c PARAM_BUS_BITS
    090 PARAM_PARSER  094 PARAM_CODES  098 PARAM_SUFFIX_LIMIT  09c PARAM_BATCH  0a0 PARAM_MAP_DEPTH
    0a4 PARAM_WEIGHT_BITS  0a8 PARAM_ACTIVATION_DEPTH  0ac PARAM_ACTIVATION_COLUMNS
    0b0 PARAM_ROW_DEPTH  0b4 PARAM_INPUT_DEPTH  0b8 PARAM_BLOCK_DEPTH  0bc PARAM_VENDOR
"""
# No two numbers alike that could be mistaken for each other.
ODD = AcceleratorParams(
    name="odd-one",
    lanes=8,
    parser_bits=16,
    parser_cut=2,
    bus_bits=128,
    codes=("eg-table", "eg-k"),
    suffix_limit=9,
    batch=3,
    map_depth=64,
    weight_bits=7,
    activation_depth=128,
    activation_columns=16,
    row_depth=2048,
    input_depth=4,
    block_depth=8,
    vendor="xilinx7",
)
CORES = [*PRESETS.values(), ODD]


def constants(params: AcceleratorParams) -> dict[str, int]:
    """Values of the constant registers, as REGISTERS has them."""
    values = {register.name: register.constant(params) for register in REGISTERS}
    return {name: value for name, value in values.items() if value is not None}


def test_offsets_are_kept() -> None:
    assert [f"{register.offset:03x}" for register in REGISTERS] == OFFSETS.split()[::2]
    assert [register.name for register in REGISTERS] == OFFSETS.split()[1::2]
    assert max(register.offset for register in REGISTERS) < 1 << ADDRESS_BITS


@pytest.mark.parametrize("params", CORES, ids=lambda params: params.name)
def test_fields_fit(params: AcceleratorParams) -> None:
    for register in REGISTERS:
        assert register.offset % 4 == 0
        covered = 0
        for field in register.fields:
            assert field.mask < 1 << 32, register.name
            assert not covered & field.mask, register.name
            covered |= field.mask
            assert (field.value is not None) == (field.kind is Kind.CONSTANT), register.name
            if field.value is not None:
                assert 0 <= field.value(params) < 1 << field.width, register.name


def test_constants() -> None:
    values = constants(ODD)
    assert values["ID"].to_bytes(4, "little") == b"EGRT"
    major, minor, patch = map(int, package_version().split(".")[:3])
    assert values["VERSION"].to_bytes(4, "big") == bytes((major, minor, patch, IMAGE_VERSION))
    numbers = {name[6:].lower(): value for name, value in values.items() if name[:6] == "PARAM_"}
    assert numbers == {
        **{k: v for k, v in dataclasses.asdict(ODD).items() if isinstance(v, int)},
        "parser": 0,
        "codes": 0b101,
        "vendor": 3,
    }


@pytest.mark.parametrize("params", CORES, ids=lambda params: params.name)
def test_parameters_are_told(params: AcceleratorParams) -> None:
    told = decode_params(constants(params), params.name)
    assert set(told.codes) == set(params.codes)
    assert dataclasses.replace(told, codes=params.codes) == params


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PARAM_PARSER", 2, "core: parameter parser: found 2, expected less than 2"),
        ("PARAM_VENDOR", 9, "core: parameter vendor: found 9, expected less than 4"),
        ("PARAM_LANES", 3, "core: parameter lanes: found 3, expected a power of two to 64"),
    ],
)
def test_parameters_that_no_core_has(name: str, value: int, message: str) -> None:
    with pytest.raises(EgretError, match=re.escape(message)):
        decode_params({**constants(ODD), name: value}, "core")


def test_unknown_register() -> None:
    with pytest.raises(
        EgretError, match=r"^register 'SPEED': unknown, expected one of ID, VERSION"
    ):
        register_named("SPEED")
    assert register_named("CYCLES").offset == 0x44


def test_c_header_compiles_and_holds_the_table(tmp_path: Path) -> None:
    expected: dict[str, int] = {}
    includes = []
    for params in CORES:
        top = top_name(params)
        (tmp_path / f"{top}_regs.h").write_text(c_header(params, top))
        # Twice, and several cores' headers in one program.
        includes += [f'#include "{top}_regs.h"\n'] * 2
        for name, value in constants(params).items():
            expected[f"{top.upper()}_{name}"] = value
    for register in REGISTERS:
        expected[f"EGRET_{register.name}_OFFSET"] = register.offset
        for field in register.fields:
            if len(register.fields) > 1:
                prefix = f"EGRET_{register.name}_{field.name.upper()}"
                expected[f"{prefix}_SHIFT"] = field.lsb
                expected[f"{prefix}_MASK"] = (2**field.width - 1) * 2**field.lsb
    for kind in ErrorKind:
        expected[f"EGRET_ERROR_KIND_{kind.name}"] = kind
    prints = "".join(f'  printf("{name} %lu\\n", (unsigned long){name});\n' for name in expected)
    program = f"{''.join(includes)}#include <stdio.h>\nint main(void) {{\n{prints}  return 0;\n}}\n"
    (tmp_path / "program.c").write_text(program)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run(["cc", *flags, "program.c", "-o", "program"], cwd=tmp_path, check=True)
    printed = subprocess.run(
        ["./program"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = dict(line.split() for line in printed.stdout.splitlines())
    assert {name: int(value) for name, value in found.items()} == expected
    # No macro that is not accounted for, but for the guards.
    defined = set(re.findall(r"#define (\w+)", "".join(c_header(p, top_name(p)) for p in CORES)))
    assert defined - set(expected) == {f"{top_name(p).upper()}_REGS_H" for p in CORES}


def test_python_module_holds_the_table() -> None:
    module: dict[str, dict[str, object]] = {}
    exec(python_module(ODD, "egret_odd_one"), module)
    assert module["OFFSETS"] == {register.name: register.offset for register in REGISTERS}
    assert module["FIELDS"] == {
        f"{register.name}.{field.name}": (field.lsb, field.width)
        for register in REGISTERS
        if len(register.fields) > 1
        for field in register.fields
    }
    assert module["ERROR_KINDS"] == {kind.name: kind.value for kind in ErrorKind}
    assert module["VALUES"] == constants(ODD)


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_markdown_of_a_core_holds_the_table() -> None:
    text = markdown(ODD)
    found = {row[1]: row for row in rows(text) if row[0].startswith("0x")}
    assert {name: int(row[0], 0) for name, row in found.items()} == {
        register.name: register.offset for register in REGISTERS
    }
    shown = {name: int(row[3], 0) for name, row in found.items() if row[3]}
    assert shown == constants(ODD)
    writable = {name for name, row in found.items() if "write" in row[2]}
    assert writable == {"CONTROL", "SCRATCH"}
    sections = dict(re.findall(r"^## (\w+)\n\n(.*?)(?=\n## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == {"VERSION", "CONTROL", "STATUS", "ERROR"}
    for name, section in sections.items():
        listed = [row[0] for row in rows(section)[1:]]
        assert listed == [field.bits for field in register_named(name).fields]
    for row in rows(text):
        assert len(row) == 5


def test_kept_page_is_current() -> None:
    page = Path(__file__).parent.parent / "docs" / "registers.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run `make rtl`"
