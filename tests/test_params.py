"""Parameters: what is refused, and the widths that follow, against values worked out by hand."""

import json
import re
from typing import Any

import pytest

from egret.errors import EgretError
from egret.params import ACTIVATION_BITS, PRESETS, AcceleratorParams

GOOD: dict[str, Any] = {
    "name": "unit",
    "lanes": 4,
    "parser_bits": 4,
    "parser_cut": 4,
    "bus_bits": 32,
}


def make(**changes: Any) -> AcceleratorParams:
    return AcceleratorParams(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("name", {"name": ""}),
        ("name", {"name": "a/b"}),
        ("name", {"name": "a b"}),
        ("name", {"name": 3}),
        ("lanes", {"lanes": 0}),
        ("lanes", {"lanes": -4}),
        ("lanes", {"lanes": 3}),
        ("lanes", {"lanes": 128, "bus_bits": 256, "parser_bits": 1, "parser_cut": 1}),
        ("lanes", {"lanes": 4.0}),
        ("lanes", {"lanes": True}),
        ("lanes", {"lanes": "4"}),
        ("parser_bits", {"parser_bits": 3, "parser_cut": 3}),
        ("parser_bits", {"parser_bits": 32, "parser_cut": 32}),
        ("parser_bits", {"parser_bits": 0}),
        ("parser_cut", {"parser_cut": 0}),
        ("parser_cut", {"parser_cut": 3}),
        ("parser_cut", {"parser_cut": 8}),
        ("parser_cut", {"parser_cut": -4}),
        ("bus_bits", {"bus_bits": 16}),
        ("bus_bits", {"bus_bits": 96}),
        ("bus_bits", {"bus_bits": 32, "lanes": 16}),
        ("batch", {"batch": 0}),
        ("batch", {"batch": 17}),
        ("map_depth", {"map_depth": 1}),
        ("map_depth", {"map_depth": 1000}),
        ("map_depth", {"map_depth": 8192}),
        ("weight_bits", {"weight_bits": 1}),
        ("weight_bits", {"weight_bits": 17}),
        ("activation_depth", {"activation_depth": 8}),
        ("activation_depth", {"activation_depth": 1000}),
        ("activation_depth", {"activation_depth": 32768, "row_depth": 32768}),
        ("row_depth", {"row_depth": 512}),
        ("row_depth", {"row_depth": 1500}),
        ("row_depth", {"row_depth": 65536}),
        ("map_depth", {"map_depth": 4096}),
        ("map_depth", {"map_depth": 256, "suffix_limit": 7}),
        ("suffix_limit", {"suffix_limit": 3}),
        ("suffix_limit", {"suffix_limit": 13}),
        ("parser", {"parser": "table"}),
        ("parser_cut", {"parser": "microcode", "parser_bits": 4, "parser_cut": 1}),
        ("codes", {"codes": ("eg-run",)}),
        ("codes", {"codes": ("eg-k", "huffman")}),
        ("codes", {"codes": ("eg-k", "eg-k")}),
        ("activation_columns", {"activation_columns": 3}),
        ("input_depth", {"input_depth": 1}),
        ("block_depth", {"block_depth": 12}),
        ("vendor", {"vendor": "altera"}),
    ],
)
def test_refused_by_field_name(field: str, changes: dict[str, Any]) -> None:
    found = re.escape(repr(changes[field]))
    with pytest.raises(EgretError, match=rf"^parameter {field}: found {found}, expected ") as error:
        make(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"lanes": 1, "parser_bits": 1, "parser_cut": 1},
        {"lanes": 64, "parser_cut": 1, "bus_bits": 256},
        {"parser_bits": 16, "parser_cut": 2, "bus_bits": 64},
        {"batch": 16},
        {"map_depth": 2},
        {"map_depth": 2048, "suffix_limit": 11},
        {"suffix_limit": 12},
        {"map_depth": 16, "suffix_limit": 4},
        {"weight_bits": 2},
        {"weight_bits": 16},
        {"activation_depth": 16, "row_depth": 16},
        {"activation_depth": 16384, "row_depth": 32768},
    ],
)
def test_ends_of_the_ranges_are_accepted(changes: dict[str, Any]) -> None:
    params = make(**changes)
    for field, value in changes.items():
        assert getattr(params, field) == value


def test_derived_one_slot() -> None:
    params = make()  # 4 lanes of 4 bits on a 32-bit bus
    assert params.slots == 1
    assert params.substreams == 4
    assert params.beat_bits == 16
    assert params.beats_per_word == 2
    assert params.suffix_limit == 10
    assert params.number_bits == 11
    # |w| <= 2^11, |x| <= 2^7, 2^10 columns: |sum| <= 2^28, one sign bit more, and 12 + 8 + 10.
    assert params.accumulator_bits == 30


def test_derived_interleaved() -> None:
    params = make(
        lanes=8,
        parser_bits=8,
        parser_cut=2,
        bus_bits=128,
        map_depth=16,
        weight_bits=5,
        activation_depth=64,
        row_depth=256,
    )
    assert params.slots == 4
    assert params.substreams == 32
    assert params.beat_bits == 64
    assert params.beats_per_word == 2
    assert params.accumulator_bits == 5 + 8 + 6


@pytest.mark.parametrize("limit", range(4, 13))
def test_every_index_has_a_codeword(limit: int) -> None:
    """Also in the lowest order, and for the filler behind the deepest map."""
    depth = min(2048, 2**limit)
    params = make(map_depth=depth, suffix_limit=limit)
    assert depth + 1 < 2**params.number_bits


@pytest.mark.parametrize("codes", [("eg-k",), ("eg-k", "eg-run")])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_weights_to_pass_over_have_room_for_two_blocks_more(
    width: int, codes: tuple[str, ...]
) -> None:
    """When half is reached, a block of zeros is on its way, and another one takes them along."""
    slots = max(1, width // 4)
    params = make(
        parser_bits=width, parser_cut=width // slots, lanes=2, codes=codes, suffix_limit=10
    )
    half = 2 ** (params.skip_bits - 1)
    assert half - 1 + 2 * width < 2 * half
    assert params.skip_bits == (11 if "eg-run" in codes else width.bit_length() + 4)


def test_activations_are_filled_up_to_whole_beats() -> None:
    params = make(batch=3, activation_columns=4)
    assert params.activation_bus_bits == 96
    assert params.pad_activations(bytes(range(12))) == bytes(range(12))
    assert params.pad_activations(bytes(range(15))) == bytes(range(15)) + bytes(9)


@pytest.mark.parametrize("weight_bits", [2, 12, 16])
@pytest.mark.parametrize("depth", [16, 1024, 16384])
def test_accumulator_holds_the_worst_sum(weight_bits: int, depth: int) -> None:
    params = make(weight_bits=weight_bits, activation_depth=depth, row_depth=depth)
    worst = depth * 2 ** (weight_bits - 1) * 2 ** (ACTIVATION_BITS - 1)
    assert worst < 2 ** (params.accumulator_bits - 1)


@pytest.mark.parametrize("params", PRESETS.values(), ids=PRESETS)
def test_json_round_trip(params: AcceleratorParams) -> None:
    assert AcceleratorParams.from_mapping(json.loads(params.to_json())) == params


def test_presets_are_named_by_their_key() -> None:
    assert {"s", "m-ddr3"} <= set(PRESETS)
    assert all(params.name == key for key, params in PRESETS.items())


def test_mapping_defaults() -> None:
    assert AcceleratorParams.from_mapping(GOOD) == make()


REFUSED_MAPPINGS: list[tuple[dict[Any, Any], str]] = [
    ({**GOOD, "lane": 4}, r"^board\.yaml: unknown parameter 'lane', expected one of name, "),
    ({**GOOD, 7: 4}, r"^board\.yaml: unknown parameter '7', "),
    (
        {key: GOOD[key] for key in GOOD if key != "parser_cut"},
        r"^board\.yaml: parameter 'parser_cut' is missing$",
    ),
    ({**GOOD, "batch": None}, r"^board\.yaml: parameter batch: found None, expected int$"),
]


@pytest.mark.parametrize(("mapping", "message"), REFUSED_MAPPINGS)
def test_mapping_refused(mapping: dict[Any, Any], message: str) -> None:
    with pytest.raises(EgretError, match=message):
        AcceleratorParams.from_mapping(mapping, source="board.yaml")
